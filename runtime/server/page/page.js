"use strict";
const $ = (id) => document.getElementById(id);
const say = (text) => { $("state").textContent = text; };
const headers = () => ($("key").value ? { Authorization: "Bearer " + $("key").value } : {});
let running = null, player = null;

async function need(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : response.statusText);
}

async function loadVoices() {
  try {
    const found = await (await need(await fetch("v1/voices", { headers: headers() }))).json();
    $("voice").replaceChildren(...found.voices.map((v) => new Option(`${v.name} (${v.seconds} s)`, v.name)));
  } catch (error) { say(error.message); }
}

function draw(samples) {
  const canvas = $("wave"), pen = canvas.getContext("2d"), middle = canvas.height / 2;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = getComputedStyle(document.querySelector("h1")).color;
  const step = Math.max(1, samples.length / canvas.width);
  for (let x = 0; x < canvas.width && x * step < samples.length; x++) {
    let peak = 0;
    for (let i = Math.floor(x * step); i < Math.min((x + 1) * step, samples.length); i++) peak = Math.max(peak, Math.abs(samples[i]));
    pen.fillRect(x, middle - peak * middle, 1, Math.max(1, 2 * peak * middle));
  }
}

function joined(parts) {
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) { all.set(part, at); at += part.length; }
  return all;
}

function fields() {
  const body = { model: "valle2", input: $("text").value, voice: $("voice").value, response_format: "wav" };
  for (const name of ["seed", "top_p", "threshold"]) if ($(name).value !== "") body[name] = Number($(name).value);
  return body;
}

async function speak() {
  stop();
  const mine = running = new AbortController(), began = performance.now();
  player = new AudioContext();
  $("stop").disabled = false; $("download").hidden = true;
  say("Waiting for the first audio");
  const response = await need(await fetch("v1/audio/speech", { method: "POST", signal: mine.signal,
    headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(fields()) }));
  const rate = Number(response.headers.get("X-Sample-Rate")), reader = response.body.getReader();
  let rest = new Uint8Array(0), head = null, parts = [], playAt = 0, first = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest); bytes.set(value, rest.length);
    let start = 0;
    if (!head) {  // the WAV header ends with "data" and a length
      const at = bytes.findIndex((b, i) => b === 100 && bytes[i + 1] === 97 && bytes[i + 2] === 116 && bytes[i + 3] === 97);
      if (at < 0 || bytes.length < at + 8) { rest = bytes; continue; }
      head = bytes.slice(0, start = at + 8);
    }
    const count = (bytes.length - start) >> 1, view = new DataView(bytes.buffer, start);
    rest = bytes.slice(start + 2 * count);
    if (!count) continue;
    const samples = Float32Array.from({ length: count }, (_, i) => view.getInt16(2 * i, true) / 32768);
    parts.push(samples);
    const buffer = player.createBuffer(1, count, rate), source = player.createBufferSource();
    buffer.copyToChannel(samples, 0);
    source.buffer = buffer; source.connect(player.destination);
    playAt = Math.max(playAt, player.currentTime + 0.02);
    source.start(playAt); playAt += count / rate;
    first = first || performance.now() - began;
    draw(joined(parts));
    say(`First audio after ${first.toFixed(0)} ms`);
  }
  const all = joined(parts), took = performance.now() - began, pcm = Int16Array.from(all, (v) => v * 32768);
  new DataView(head.buffer).setUint32(4, head.length - 8 + pcm.byteLength, true);
  new DataView(head.buffer).setUint32(head.length - 4, pcm.byteLength, true);
  $("download").href = URL.createObjectURL(new Blob([head, pcm], { type: "audio/wav" }));
  $("download").hidden = false;
  say(`First audio after ${first.toFixed(0)} ms; ${(all.length / rate).toFixed(2)} s of speech in ${(took / 1000).toFixed(2)} s`);
}

function stop() {
  if (running) running.abort();
  if (player) player.close();
  running = player = null;
  $("stop").disabled = true;
}

$("speak").onclick = () => speak().catch((error) => { if (error.name !== "AbortError") say(error.message); });
$("stop").onclick = () => { stop(); say("Stopped"); };
$("key").onchange = loadVoices;
$("upload").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await need(await fetch("v1/voices", { method: "POST", headers: headers(), body: new FormData(event.target) }));
    say("The voice was added"); event.target.reset(); await loadVoices();
  } catch (error) { say(error.message); }
};
loadVoices();
