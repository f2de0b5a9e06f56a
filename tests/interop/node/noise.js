// An independent implementation of the `noise` wire, on the cryptography of Node.js, after the Noise specification
// (revision 34); its sections are given below.
//
//     noise.js check FILE                                          compare with test vectors
//     noise.js connect HOST:PORT KEY_ID KEY_HEX AUDIENCE [SUITE]   prove, check the server's proof, copy stdin -> stream -> stdout
//     noise.js listen  HOST:PORT KEY_ID KEY_HEX AUDIENCE           accept one peer after the other, echo what it sends
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const net = require("node:net");

const PROTOCOL = Buffer.from("tower-challenge noise v1");
const SUITES = {
  1: { name: "Noise_NNpsk0_25519_AESGCM_SHA256", aead: "aes-256-gcm", nonce: (n, b) => b.writeBigUInt64BE(n, 4) },
  2: { name: "Noise_NNpsk0_25519_ChaChaPoly_SHA256", aead: "chacha20-poly1305", nonce: (n, b) => b.writeBigUInt64LE(n, 4) },
};
const [FINISH, DATA, CLOSE] = [0, 1, 2];
const EMPTY = Buffer.alloc(0);

const hash = (...parts) => crypto.createHash("sha256").update(Buffer.concat(parts)).digest();
const hmac = (key, ...parts) => crypto.createHmac("sha256", key).update(Buffer.concat(parts)).digest();

/** Section 4.3: HKDF with two or three outputs. */
function hkdf(chainingKey, input, count) {
  const key = hmac(chainingKey, input);
  const outputs = [EMPTY];
  for (let i = 1; i <= count; i++) outputs.push(hmac(key, outputs[i - 1], Buffer.from([i])));
  return outputs.slice(1);
}

/** Section 5.1. */
class CipherState {
  constructor(suite, key) {
    Object.assign(this, { suite, key, n: 0n, rekeyEvery: 1n << 20n });
  }

  /** Section 12: 32 bits of zeros, then the counter, in the byte order of the cipher. */
  nonce(n) {
    const nonce = Buffer.alloc(12);
    this.suite.nonce(n, nonce);
    return nonce;
  }

  encryptAt(n, ad, plaintext) {
    const cipher = crypto.createCipheriv(this.suite.aead, this.key, this.nonce(n), { authTagLength: 16 });
    cipher.setAAD(ad, { plaintextLength: plaintext.length });
    return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
  }

  encrypt(ad, plaintext) {
    return this.encryptAt(this.n++, ad, plaintext);
  }

  decrypt(ad, sealed) {
    const end = sealed.length - 16;
    const decipher = crypto.createDecipheriv(this.suite.aead, this.key, this.nonce(this.n), { authTagLength: 16 });
    decipher.setAAD(ad, { plaintextLength: end });
    decipher.setAuthTag(sealed.subarray(end));
    const plaintext = Buffer.concat([decipher.update(sealed.subarray(0, end)), decipher.final()]);
    this.n++;
    return plaintext;
  }

  /** Section 4.2. The nonce runs on. */
  rekeyIfDue() {
    if (this.n > 0n && this.n % this.rekeyEvery === 0n) {
      this.key = this.encryptAt((1n << 64n) - 1n, EMPTY, Buffer.alloc(32)).subarray(0, 32);
    }
  }

  seal(kind, data = EMPTY) {
    this.rekeyIfDue();
    return prefixed(this.encrypt(EMPTY, Buffer.concat([Buffer.from([kind]), data])));
  }

  open(sealed) {
    this.rekeyIfDue();
    if (sealed.length < 17) throw new Error(`a record of ${sealed.length} bytes`);
    const plaintext = this.decrypt(EMPTY, sealed);
    const [kind, data] = [plaintext[0], plaintext.subarray(1)];
    if (kind > CLOSE || (kind !== DATA && data.length > 0)) throw new Error(`a record of type ${kind}`);
    return [kind, data];
  }
}

function prefixed(bytes) {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/** X25519 keys from and to 32 bytes (RFC 8410). */
const privateKey = (raw) =>
  crypto.createPrivateKey({ key: Buffer.concat([Buffer.from("302e020100300506032b656e04220420", "hex"), raw]), format: "der", type: "pkcs8" });
const publicKey = (raw) =>
  crypto.createPublicKey({ key: Buffer.concat([Buffer.from("302a300506032b656e032100", "hex"), raw]), format: "der", type: "spki" });
const publicBytes = (key) => crypto.createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32);

/** Sections 5.2 and 5.3, for the messages `psk, e` and `e, ee` (sections 7.4 and 9). */
class Handshake {
  constructor({ suite, key, keyId, audience, bindingType = EMPTY, binding = EMPTY, ephemeral = crypto.randomBytes(32) }) {
    this.suite = SUITES[suite];
    const name = Buffer.from(this.suite.name);
    this.h = name.length <= 32 ? Buffer.concat([name], 32) : hash(name);
    this.ck = this.h;
    this.ephemeral = privateKey(ephemeral);
    this.mixHash(Buffer.concat([prefixed(PROTOCOL), Buffer.from([suite]), ...[keyId, audience, bindingType, binding].map(prefixed)]));
    const psk = hmac(hmac(PROTOCOL, key), Buffer.from("psk\x01"));
    let pskHash, cipherKey;
    [this.ck, pskHash, cipherKey] = hkdf(this.ck, psk, 3);
    this.mixHash(pskHash);
    this.cipher = new CipherState(this.suite, cipherKey);
  }

  mixHash(data) {
    this.h = hash(this.h, data);
  }

  mixKey(input) {
    let cipherKey;
    [this.ck, cipherKey] = hkdf(this.ck, input, 2);
    this.cipher = new CipherState(this.suite, cipherKey);
  }

  mixEphemeral(bytes) {
    this.mixHash(bytes);
    this.mixKey(bytes);
  }

  mixDh() {
    this.mixKey(crypto.diffieHellman({ privateKey: this.ephemeral, publicKey: publicKey(this.remote) }));
  }

  write(withDh) {
    const own = publicBytes(this.ephemeral);
    this.mixEphemeral(own);
    if (withDh) this.mixDh();
    const tag = this.cipher.encrypt(this.h, EMPTY);
    this.mixHash(tag);
    return Buffer.concat([own, tag]);
  }

  read(message, withDh) {
    this.remote = message.subarray(0, 32);
    this.mixEphemeral(this.remote);
    if (withDh) this.mixDh();
    const tag = message.subarray(32);
    this.cipher.decrypt(this.h, tag);
    this.mixHash(tag);
  }

  /** Returns the ciphers from client to server and from server to client. */
  split() {
    return hkdf(this.ck, EMPTY, 2).map((key) => new CipherState(this.suite, key));
  }
}

const hello = (suite, keyId, message) => prefixed(Buffer.concat([Buffer.from([1, suite, keyId.length]), keyId, message]));
const answer = (message) => prefixed(Buffer.concat([Buffer.from([1]), message]));

/** Reads frames and records, which both have a length of two bytes. */
class Reader {
  constructor(socket) {
    this.chunks = socket.iterator({ destroyOnReturn: false });
    this.buffer = EMPTY;
  }

  async exactly(length) {
    while (this.buffer.length < length) {
      const { value, done } = await this.chunks.next();
      if (done) throw new Error("ended without a CLOSE");
      this.buffer = Buffer.concat([this.buffer, value]);
    }
    const bytes = this.buffer.subarray(0, length);
    this.buffer = this.buffer.subarray(length);
    return bytes;
  }

  async frame() {
    return this.exactly((await this.exactly(2)).readUInt16BE());
  }

  /** Calls `use` with the data of each record up to CLOSE. */
  async records(cipher, use) {
    for (;;) {
      const [kind, data] = cipher.open(await this.frame());
      if (kind === CLOSE) return;
      if (kind === FINISH) throw new Error("a second FINISH");
      await use(data);
    }
  }
}

const write = (socket, bytes) =>
  new Promise((resolve, reject) => socket.write(bytes, (error) => (error ? reject(error) : resolve())));

async function writeData(socket, cipher, data) {
  for (let at = 0; at < data.length; at += 16000) await write(socket, cipher.seal(DATA, data.subarray(at, at + 16000)));
}

async function connect(host, port, { suite, keyId, ...settings }) {
  const socket = net.connect({ host, port, allowHalfOpen: true });
  const reader = new Reader(socket);
  const handshake = new Handshake({ suite, keyId, ...settings });
  await write(socket, hello(suite, keyId, handshake.write(false)));
  const reply = await reader.frame();
  if (reply.equals(Buffer.from([0]))) throw new Error("refused");
  handshake.read(reply.subarray(1), true);
  const [up, down] = handshake.split();
  await write(socket, up.seal(FINISH));
  const send = async () => {
    for await (const chunk of process.stdin) await writeData(socket, up, chunk);
    socket.end(up.seal(CLOSE));
  };
  await Promise.all([send(), reader.records(down, (data) => write(process.stdout, data))]);
}

async function serve(socket, settings) {
  const reader = new Reader(socket);
  const frame = await reader.frame();
  const [suite, n] = [frame[1], frame[2]];
  let handshake;
  try {
    if (!frame.subarray(3, 3 + n).equals(settings.keyId)) throw new Error("unknown key id");
    handshake = new Handshake({ suite, ...settings });
    handshake.read(frame.subarray(3 + n), false);
  } catch (error) {
    socket.end(prefixed(Buffer.from([0])));
    throw new Error(`refused: ${error.message}`);
  }
  await write(socket, answer(handshake.write(true)));
  const [up, down] = handshake.split();
  if (up.open(await reader.frame())[0] !== FINISH) throw new Error("no FINISH");
  console.log("accepted");
  await reader.records(up, (data) => writeData(socket, down, data));
  socket.end(down.seal(CLOSE));
  console.log("closed");
}

function check(rows) {
  const equal = (name, bytes, expected) => {
    if (bytes.toString("hex") !== expected) throw new Error(`${name}: ${bytes.toString("hex")} instead of ${expected}`);
  };
  for (const row of rows) {
    const hex = (field) => Buffer.from(row[field], "hex");
    const settings = { suite: row.suite, key: hex("key"), keyId: hex("key_id"), audience: hex("audience") };
    Object.assign(settings, { bindingType: hex("binding_type"), binding: hex("binding") });
    const client = new Handshake({ ...settings, ephemeral: hex("client_ephemeral_private") });
    const server = new Handshake({ ...settings, ephemeral: hex("server_ephemeral_private") });
    const one = client.write(false);
    equal(row.name, hello(row.suite, settings.keyId, one), row.hello_frame);
    server.read(one, false);
    const two = server.write(true);
    equal(row.name, answer(two), row.answer_frame);
    client.read(two, true);
    equal(row.name, client.h, row.handshake_hash);
    equal(row.name, server.h, row.handshake_hash);
    const [up, down] = client.split();
    let sent = [[FINISH], [DATA, Buffer.from("hello")], [DATA], [CLOSE]];
    if (row.name.includes("rekeyed")) {
      up.rekeyEvery = 2n;
      sent = [[FINISH], ...["1", "2", "3", "4"].map((digit) => [DATA, Buffer.from(digit)])];
    }
    row.client_records.forEach((record, i) => equal(row.name, up.seal(...sent[i]), record));
    const replies = [[DATA, Buffer.from("welcome")], [CLOSE]];
    (row.server_records ?? []).forEach((record, i) => equal(row.name, down.seal(...replies[i]), record));
  }
  console.log(`${rows.length} rows match`);
}

function listen(host, port, settings) {
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    serve(socket, settings).catch((error) => {
      console.log(`failed: ${error.message}`);
      // Unless it ends with a refusal. No CLOSE is sent.
      if (!socket.writableEnded) socket.destroy();
    });
  });
  server.listen(port, host, () => console.log(`listening on ${host}:${server.address().port}`));
}

async function main([mode, where, keyId, key, audience, suite]) {
  if (mode === "check") return check(JSON.parse(fs.readFileSync(where)));
  const [host, port] = [where.slice(0, where.lastIndexOf(":")), Number(where.slice(where.lastIndexOf(":") + 1))];
  const settings = { keyId: Buffer.from(keyId), key: Buffer.from(key, "hex"), audience: Buffer.from(audience) };
  return mode === "connect" ? connect(host, port, { ...settings, suite: Number(suite ?? 1) }) : listen(host, port, settings);
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
