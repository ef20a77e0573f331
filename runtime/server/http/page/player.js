// Speech that arrives: serverEvents and WavStream parse it, Player plays it and Wave draws it.

const PEAKS_PER_SECOND = 100;
const LEAD_SECONDS = 0.02;

export async function* serverEvents(body) {
  // The events of a response's body, as parsed JSON. body: a ReadableStream of bytes.
  const reader = body.getReader(), decoder = new TextDecoder();
  for (let text = "";;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (text + decoder.decode(value, { stream: true })).split("\n\n");
    text = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
  }
}

export class WavStream {
  // 16-bit mono. feed(bytes) returns the new samples as a Float32Array, which may be empty.
  constructor() { this.rest = new Uint8Array(0); this.head = null; this.parts = []; this.count = 0; }

  feed(bytes) {
    let data = joined([this.rest, bytes]);
    if (!this.head) {
      const size = headSize(data);
      if (!size) { this.rest = data; return new Float32Array(0); }
      this.head = data.slice(0, size);
      this.rate = new DataView(this.head.buffer).getUint32(24, true);
      data = data.slice(size);
    }
    const whole = data.length & ~1;
    this.rest = data.slice(whole);
    const part = data.slice(0, whole), view = new DataView(part.buffer);
    this.parts.push(part);
    this.count += whole / 2;
    return Float32Array.from({ length: whole / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
  }

  get seconds() { return this.head ? this.count / this.rate : 0; }

  file() {  // a complete WAV file: the header gets the length, which a stream's header lacks
    const head = this.head.slice(), view = new DataView(head.buffer);
    view.setUint32(4, head.length - 8 + 2 * this.count, true);
    view.setUint32(head.length - 4, 2 * this.count, true);
    return new Blob([head, ...this.parts], { type: "audio/wav" });
  }
}

function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { all.set(part, at); at += part.length; }
  return all;
}

function headSize(data) {  // bytes before the samples; 0 until the header of the "data" chunk has come
  const view = new DataView(data.buffer);
  for (let at = 12; at + 8 <= data.length; at += 8 + view.getUint32(at + 4, true)) {
    if (String.fromCharCode(...data.slice(at, at + 4)) === "data") return at + 8;
  }
  return 0;
}

export class Player {
  // Plays pieces one after the other. Browsers play nothing unless it is created in a click handler.
  constructor() { this.context = new AudioContext(); this.began = this.until = 0; }

  add(samples, rate) {
    const buffer = this.context.createBuffer(1, samples.length, rate), source = this.context.createBufferSource();
    buffer.copyToChannel(samples, 0);
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.until = Math.max(this.until, this.context.currentTime + LEAD_SECONDS);
    this.began = this.began || this.until;
    source.start(this.until);
    this.until += buffer.duration;
  }

  get position() { return this.began ? Math.max(0, this.context.currentTime - this.began) : 0; }
  get playing() { return this.context.state !== "closed" && this.context.currentTime < this.until; }
  close() { if (this.context.state !== "closed") this.context.close(); }
}

export class Wave {
  // Draws the peaks of the speech; the part not played yet is pale.
  constructor(canvas) { this.canvas = canvas; this.clear(); }

  clear() { this.peaks = []; this.count = 0; this.peak = 0; this.draw(0); }

  add(samples, rate) {
    const size = rate / PEAKS_PER_SECOND;
    for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      if (++this.count >= size) { this.peaks.push(this.peak); this.count = this.peak = 0; }
    }
  }

  draw(position) {
    const { canvas, peaks } = this, scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    pen.fillStyle = getComputedStyle(canvas).color;
    const bar = 3 * scale, bars = Math.floor(canvas.width / bar), middle = canvas.height / 2;
    const loudest = Math.max(0.1, ...thinned(peaks, bars)), per = Math.max(peaks.length, PEAKS_PER_SECOND) / bars;
    for (let x = 0; x < bars && x * per < peaks.length; x++) {
      const high = Math.max(...peaks.slice(Math.floor(x * per), Math.floor((x + 1) * per) || 1), 0) / loudest;
      pen.globalAlpha = x * per <= position * PEAKS_PER_SECOND ? 1 : 0.4;
      pen.fillRect(x * bar, middle * (1 - 0.9 * high) - scale / 2, 2 * scale, 1.8 * middle * high + scale);
    }
  }
}

function thinned(peaks, count) {  // the largest of each run: Math.max(...) takes a limited number of arguments
  const size = Math.ceil(peaks.length / count) || 1, found = [];
  for (let at = 0; at < peaks.length; at += size) found.push(Math.max(...peaks.slice(at, at + size)));
  return found;
}
