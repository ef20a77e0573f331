// The page: what is typed and chosen goes to the server, what comes back is heard, seen and kept.
import { Player, Wave, WavStream } from "./player.js";
import { LONGEST_SECONDS, Recorder, toWav } from "./recorder.js";

const $ = (id) => document.getElementById(id);
const wave = new Wave($("wave"));
const OPTIONS = ["seed", "top_p", "window", "threshold", "latency"];
const RETRY_MS = 1000;
const FRAME_MS = 50;
let player = null, request = null, recorder = null, recording = null, links = {};

function tell(id, text, bad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", bad);
}

async function call(path, options = {}) {
  const key = $("key").value, headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("key-field").hidden = false;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : `${response.status} ${response.statusText}`);
}

function link(id, field, blob) {  // a blob's address for an element; the one before is let go
  if (links[id]) URL.revokeObjectURL(links[id]);
  $(id)[field] = links[id] = URL.createObjectURL(blob);
}

// -- server and voices ---------------------------------------------------------------------------

async function connect() {
  const state = await fetch("ready").then((response) => response.json()).catch(() => ({ state: "unreachable" }));
  $("server").textContent = state.state;
  if (state.state === "ready") return loadVoices();
  setTimeout(connect, RETRY_MS);
}

async function loadVoices(chosen = $("voice").value) {
  try {
    const { voices } = await (await call("v1/voices")).json();
    $("voice").replaceChildren(...voices.map((voice) => {
      const option = new Option(`${voice.name} (${voice.seconds} s)`, voice.name, false, voice.name === chosen);
      option.title = voice.transcript;
      option.dataset.uploaded = voice.source === "upload" ? "yes" : "";
      return option;
    }));
    showDelete();
  } catch (error) { tell("state", error.message, true); }
}

function showDelete() {
  const option = $("voice").selectedOptions[0];
  $("delete").hidden = !(option && option.dataset.uploaded);
}

async function deleteVoice() {
  const name = $("voice").value;
  try {
    await call(`v1/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
    tell("state", `Voice ${name} was deleted`);
    await loadVoices();
  } catch (error) { tell("state", error.message, true); }
}

// -- speech --------------------------------------------------------------------------------------

function fields() {
  const body = { model: "valle2", input: $("text").value, voice: $("voice").value, response_format: "wav" };
  for (const name of OPTIONS) if ($(name).value !== "") body[name] = Number($(name).value);
  return body;
}

async function speak() {
  stop();
  const mine = request = new AbortController(), heard = player = new Player(), began = performance.now();
  wave.clear();
  $("stop").disabled = false;
  $("result").hidden = $("timings").hidden = true;
  tell("state", "Waiting for the first audio");
  try {
    const response = await call("v1/audio/speech", { method: "POST", signal: mine.signal,
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields()) });
    const stream = await listen(response, heard, began);
    finish(stream, (performance.now() - began) / 1000);
  } catch (error) {
    if (mine.signal.aborted) return;
    stop();
    tell("state", error instanceof TypeError ? "The connection was cut; the speech is not whole" : error.message, true);
  }
}

async function listen(response, heard, began) {
  const stream = new WavStream(), reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return stream;
    const samples = stream.feed(value);
    if (!samples.length) continue;
    const first = !wave.peaks.length && !wave.left;
    heard.add(samples, stream.rate);
    wave.add(samples, stream.rate);
    if (first) {
      $("first").textContent = `${Math.round(performance.now() - began)} ms`;
      $("timings").hidden = false;
      for (const id of ["took", "speed"]) $(id).textContent = "…";
      animate(heard);
    }
    $("speech").textContent = `${stream.seconds.toFixed(1)} s`;
    tell("state", "Speaking while the rest is computed");
  }
}

function animate(heard) {
  wave.draw(heard.position);
  if (heard.playing || (heard === player && request)) setTimeout(() => animate(heard), FRAME_MS);
  else if (heard === player) $("stop").disabled = true;
}

function finish(stream, took) {
  request = null;
  $("took").textContent = `${took.toFixed(2)} s`;
  $("speed").textContent = `${(stream.seconds / took).toFixed(2)} ×`;
  $("wave").setAttribute("aria-label", `Waveform of ${stream.seconds.toFixed(1)} seconds of speech`);
  link("again", "src", stream.file());
  link("download", "href", stream.file());
  $("result").hidden = false;
  tell("state", `Whole, with seed ${$("seed").value || "0"}`);
}

function stop() {
  if (request) request.abort();
  if (player) player.close();
  request = null;
  $("stop").disabled = true;
}

// -- a new voice ---------------------------------------------------------------------------------

async function toggleRecording() {
  try {
    if (recorder) return await endRecording();
    const started = new Recorder();
    await started.start();
    recorder = started;
    $("record").textContent = "Stop recording";
    $("record").setAttribute("aria-pressed", "true");
    tell("voice-state", `Recording; it ends by itself after ${LONGEST_SECONDS} s`);
    setTimeout(() => { if (recorder === started) endRecording(); }, 1000 * LONGEST_SECONDS);
  } catch (error) { tell("voice-state", error.message, true); }
}

async function endRecording() {
  const ended = recorder;
  recorder = null;
  $("record").textContent = "Record again";
  $("record").setAttribute("aria-pressed", "false");
  $("file").value = "";
  await take(await ended.stop());
}

async function take(blob) {  // a recording or a file becomes the voice to be added
  recording = null;
  $("heard").hidden = true;
  const { wav, seconds } = await toWav(blob);
  recording = wav;
  link("heard", "src", wav);
  $("heard").hidden = false;
  tell("voice-state", `${seconds.toFixed(1)} s recorded`);
}

async function addVoice() {
  if (!recording) return tell("voice-state", "Record something or choose a file first", true);
  const form = new FormData();
  form.set("name", $("name").value);
  form.set("transcript", $("transcript").value);
  form.set("consent", String($("consent").checked));
  form.set("file", recording, "voice.wav");
  try {
    const added = await (await call("v1/voices", { method: "POST", body: form })).json();
    tell("voice-state", `Voice ${added.name} was added and chosen`);
    $("upload").reset();
    recording = null;
    $("heard").hidden = true;
    await loadVoices(added.name);
  } catch (error) { tell("voice-state", error.message, true); }
}

// -- what the controls do ------------------------------------------------------------------------

const submitted = (id, act) => $(id).addEventListener("submit", (event) => { event.preventDefault(); act(); });
submitted("request", speak);
submitted("upload", addVoice);
$("stop").onclick = () => { stop(); tell("state", "Stopped"); };
$("roll").onclick = () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; };
$("delete").onclick = deleteVoice;
$("voice").onchange = showDelete;
$("key").onchange = () => loadVoices();
$("record").onclick = toggleRecording;
$("file").onchange = () => $("file").files.length
  && take($("file").files[0]).catch((error) => tell("voice-state", error.message, true));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) $("request").requestSubmit();
  if (event.key === "Escape" && !$("stop").disabled) $("stop").click();
});
for (const change of [matchMedia("(prefers-color-scheme: dark)"), window]) {
  change.addEventListener(change === window ? "resize" : "change", () => wave.draw(player ? player.position : 0));
}
connect();
