// Sends the form to the server; plays, draws and saves the speech that comes back; adds and deletes voices.
import { Player, Wave, WavStream, serverEvents } from "./player.js";
import { Recorder, toWav } from "./recorder.js";

const $ = (id) => document.getElementById(id);
const wave = new Wave($("wave"));
// inputs that become fields of the request if they are filled in
const OPTIONS = ["seed", "speaking_speed", "top_p", "window", "threshold", "first_chunk_seconds"];
const FIELDS = { speaking_speed: "speed" };  // fields whose inputs have another id
const RETRY_MS = 1000;
const FRAME_MS = 50;
let limits = null, player = null, request = null, recorder = null, recording = null, blobUrls = {};

function showStatus(id, text, bad = false) {
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

function setBlob(id, field, blob) {  // points an element at a blob and frees its last one
  if (blobUrls[id]) URL.revokeObjectURL(blobUrls[id]);
  $(id)[field] = blobUrls[id] = URL.createObjectURL(blob);
}

// -- server and voices ---------------------------------------------------------------------------

async function connect() {
  const state = await fetch("ready").then((response) => response.json()).catch(() => ({ state: "unreachable" }));
  $("server").textContent = state.state;
  if (state.state === "ready") return Promise.all([loadVoices(), loadLimits()]);
  setTimeout(connect, RETRY_MS);
}

async function loadVoices(selected = $("voice").value) {
  try {
    const { voices } = await (await call("v1/voices")).json();
    $("voice").replaceChildren(...voices.map((voice) => {
      const option = new Option(`${voice.name} (${voice.seconds} s)`, voice.name, false, voice.name === selected);
      option.title = voice.transcript;
      option.dataset.uploaded = voice.source === "upload" ? "yes" : "";
      return option;
    }));
    showDeleteButton();
  } catch (error) { showStatus("state", error.message, true); }
}

async function loadLimits() {  // what this server and its model take; no maxLength, which would cut a pasted text
  try {
    limits = await (await call("v1/limits")).json();
    const { least, most } = limits.recording_seconds;
    $("length-hint").textContent = `${least} to ${most} seconds of one speaker, and a transcript.`;
  } catch (error) { showStatus("state", error.message, true); }
}

function showDeleteButton() {
  const option = $("voice").selectedOptions[0];
  $("delete").hidden = !(option && option.dataset.uploaded);
}

async function deleteVoice() {
  const name = $("voice").value;
  try {
    await call(`v1/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
    showStatus("state", `Voice ${name} was deleted`);
    await loadVoices();
  } catch (error) { showStatus("state", error.message, true); }
}

// -- speech --------------------------------------------------------------------------------------

function requestBody() {
  const body = { model: "valle2", input: $("text").value, voice: $("voice").value, response_format: "wav",
    stream_format: "sse" };
  for (const id of OPTIONS) if ($(id).value !== "") body[FIELDS[id] || id] = Number($(id).value);
  return body;
}

async function speak() {
  stop();
  const abort = request = new AbortController(), speaker = player = new Player(), began = performance.now();
  wave.clear();
  $("stop").disabled = false;
  $("result").hidden = $("timings").hidden = true;
  showStatus("state", "Waiting for the first audio");
  try {
    const response = await call("v1/audio/speech", { method: "POST", signal: abort.signal,
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(requestBody()) });
    const { stream, last } = await playStream(response, speaker, began);
    finish(stream, (performance.now() - began) / 1000, remarks(last));
  } catch (error) {
    if (abort.signal.aborted) return;
    stop();
    const broken = error instanceof TypeError;  // fetch's error when a response ends early
    showStatus("state", broken ? "The connection broke; the speech is not complete. Try again." : error.message, true);
  }
}

async function playStream(response, speaker, began) {  // returns the stream and the last event
  const stream = new WavStream();
  for await (const event of serverEvents(response.body)) {
    if (event.type === "speech.audio.done") return { stream, last: event };
    if (event.type !== "speech.audio.delta") continue;
    const samples = stream.feed(Uint8Array.from(atob(event.audio), (char) => char.charCodeAt(0)));
    if (!samples.length) continue;
    const first = !wave.peaks.length && !wave.count;
    speaker.add(samples, stream.rate);
    wave.add(samples, stream.rate);
    if (first) {
      $("first").textContent = `${Math.round(performance.now() - began)} ms`;
      $("timings").hidden = false;
      for (const id of ["took", "speed"]) $(id).textContent = "…";
      animate(speaker);
    }
    $("speech").textContent = `${stream.seconds.toFixed(1)} s`;
    showStatus("state", "Speaking; the rest is being computed");
  }
  throw new TypeError("the last event is missing");
}

function animate(speaker) {
  wave.draw(speaker.position);
  if (speaker.playing || (speaker === player && request)) setTimeout(() => animate(speaker), FRAME_MS);
  else if (speaker === player) $("stop").disabled = true;
}

export function remarks(last) {  // what the user should know about complete speech; "" if nothing
  const cut = {
    max_frames: ["the speech was cut at the model's longest; try another seed"],
    repetition: ["the speech repeated itself and was cut; try another seed"],
  };
  return [...(cut[last.finish_reason] || []), ...last.warnings].map((text) => `. Warning: ${text}`).join("");
}

function finish(stream, took, remarks) {
  request = null;
  $("took").textContent = `${took.toFixed(2)} s`;
  $("speed").textContent = `${(stream.seconds / took).toFixed(2)} ×`;
  $("wave").setAttribute("aria-label", `Waveform of ${stream.seconds.toFixed(1)} seconds of speech`);
  setBlob("again", "src", stream.file());
  setBlob("download", "href", stream.file());
  $("result").hidden = false;
  showStatus("state", `Complete, with seed ${$("seed").value || "0"}${remarks}`);
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
    const started = new Recorder(), longest = limits && limits.recording_seconds.most;
    await started.start();
    recorder = started;
    $("record").textContent = "Stop recording";
    $("record").setAttribute("aria-pressed", "true");
    showStatus("voice-state", longest ? `Recording, at most ${longest} s` : "Recording");
    if (longest) setTimeout(() => { if (recorder === started) endRecording(); }, 1000 * longest);
  } catch (error) { showStatus("voice-state", error.message, true); }
}

async function endRecording() {
  const ended = recorder;
  recorder = null;
  $("record").textContent = "Record again";
  $("record").setAttribute("aria-pressed", "false");
  $("file").value = "";
  await useRecording(await ended.stop());
}

async function useRecording(blob) {  // a recording or a file, for the next voice to add
  recording = null;
  $("heard").hidden = true;
  const { wav, seconds } = await toWav(blob);
  recording = wav;
  setBlob("heard", "src", wav);
  $("heard").hidden = false;
  showStatus("voice-state", `${seconds.toFixed(1)} s recorded`);
}

async function addVoice() {
  if (!recording) return showStatus("voice-state", "Record a voice or choose a file first", true);
  const form = new FormData();
  form.set("name", $("name").value);
  form.set("transcript", $("transcript").value);
  form.set("consent", String($("consent").checked));
  form.set("file", recording, "voice.wav");
  try {
    const added = await (await call("v1/voices", { method: "POST", body: form })).json();
    const warnings = added.warnings.map((text) => `. Warning: ${text}`).join("");
    showStatus("voice-state", `Voice ${added.name} was added and selected${warnings}`);
    $("upload").reset();
    recording = null;
    $("heard").hidden = true;
    await loadVoices(added.name);
  } catch (error) { showStatus("voice-state", error.message, true); }
}

// -- event handlers ------------------------------------------------------------------------------

const submitted = (id, act) => $(id).addEventListener("submit", (event) => { event.preventDefault(); act(); });
submitted("request", speak);
submitted("upload", addVoice);
$("stop").onclick = () => { stop(); showStatus("state", "Stopped"); };
$("roll").onclick = () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; };
$("delete").onclick = deleteVoice;
$("voice").onchange = showDeleteButton;
$("key").onchange = () => Promise.all([loadVoices(), loadLimits()]);
$("record").onclick = toggleRecording;
$("file").onchange = () => $("file").files.length
  && useRecording($("file").files[0]).catch((error) => showStatus("voice-state", error.message, true));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) $("request").requestSubmit();
  if (event.key === "Escape" && !$("stop").disabled) $("stop").click();
});
for (const change of [matchMedia("(prefers-color-scheme: dark)"), window]) {
  change.addEventListener(change === window ? "resize" : "change", () => wave.draw(player ? player.position : 0));
}
connect();
