// Turns a recording from the microphone, or an audio file, into a WAV of one or two channels.

const RATE = 48000;

export class Recorder {
  // start() asks for the microphone; stop() returns a Blob in the browser's own encoding.
  async start() {
    if (!navigator.mediaDevices) throw new Error("No microphone: browsers allow it only on https and localhost.");
    const raw = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    } catch (error) {
      throw new Error(`No microphone: ${error.message}`);
    }
    this.parts = [];
    this.encoder = new MediaRecorder(this.stream);
    this.encoder.ondataavailable = (event) => this.parts.push(event.data);
    this.encoder.start();
  }

  async stop() {
    const ended = new Promise((resolve) => { this.encoder.onstop = resolve; });
    this.encoder.stop();
    await ended;
    this.stream.getTracks().forEach((track) => track.stop());
    return new Blob(this.parts, { type: this.encoder.mimeType });
  }
}

export async function toWav(blob) {
  // Returns { wav: Blob, seconds }. blob: any format that the browser can decode.
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error("The browser cannot read this as audio; choose a WAV, MP3, FLAC, Ogg or M4A file.");
  }
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  const kept = channels.length > 2 ? [mixed(channels)] : channels;
  const peak = kept.reduce((most, channel) => channel.reduce((m, x) => Math.max(m, Math.abs(x)), most), 0) || 1;
  const samples = new Int16Array(audio.length * kept.length);  // the server sets the level, so use all 16 bits
  kept.forEach((channel, c) => channel.forEach((x, i) => { samples[i * kept.length + c] = Math.round(x / peak * 32767); }));
  const wav = new Blob([header(samples.byteLength, kept.length), samples], { type: "audio/wav" });
  return { wav, seconds: audio.duration };
}

function mixed(channels) {  // of more than two channels: the mean
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

function header(bytes, channels) {
  const view = new DataView(new ArrayBuffer(44));
  const write = (at, text) => [...text].forEach((char, i) => view.setUint8(at + i, char.charCodeAt(0)));
  write(0, "RIFF"); view.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt "); view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); view.setUint16(22, channels, true);  // PCM
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * channels * RATE, true);
  view.setUint16(32, 2 * channels, true); view.setUint16(34, 16, true);
  write(36, "data"); view.setUint32(40, bytes, true);
  return view;
}
