// What happens in the daemon, as it happens: Server-Sent Events, read with fetch because an
// EventSource cannot send a token. Without them, the same by asking again and again.

import { ask, call, Refused } from "./api.js";

const POLL_MS = 2000;
const RETRY_MS = 5000;
/** The daemon sends a beat every 15 s; a line that is silent for longer is dead. */
const SILENCE_MS = 35000;

/** The messages of a stream of Server-Sent Events, as {event, data, id}. */
export async function* messages(stream, heard = () => {}) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let message = { event: "message", data: [], id: null };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    heard();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (message.data.length) {
          yield { ...message, data: message.data.join("\n") };
        }
        message = { event: "message", data: [], id: null };
        continue;
      }
      const [, name, content] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "data") {
        message.data.push(content);
      } else if (name === "event" || name === "id") {
        message[name] = content;
      }
    }
  }
}

/**
 * Listens while the page is to be seen. told: {full(pools), stats(content), event(happened),
 * line(state, words), refused(error)}.
 */
export class Live {
  #told;
  #last = null;
  #running = null;

  constructor(told) {
    this.#told = told;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  start() {
    if (this.#running === null) {
      const running = new AbortController();
      this.#running = running;
      this.#run(running.signal).catch((error) => {
        if (this.#running === running) {
          this.#running = null;
        }
        if (error.name !== "AbortError") {
          this.#told.refused(error);
        }
      });
    }
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
  }

  async #run(signal) {
    for (;;) {
      try {
        this.#told.full(await call("GET", "/stats"));
        await this.#listen(signal);
      } catch (error) {
        this.#check(error, signal);
      }
      await this.#poll(signal);
    }
  }

  /** Let through what trying again does not mend. */
  #check(error, signal) {
    if (signal.aborted || (error instanceof Refused && [401, 403, 421].includes(error.status))) {
      throw error;
    }
    if (error instanceof Refused && error.status === 0) {
      this.#told.line("down", "qgisd does not answer");
    }
  }

  async #listen(signal) {
    const line = new AbortController();
    const end = () => line.abort();
    signal.addEventListener("abort", end);
    let silence = setTimeout(end, SILENCE_MS);
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(end, SILENCE_MS);
    };
    try {
      const headers = this.#last === null ? {} : { "Last-Event-ID": this.#last };
      const response = await ask("/api/v1/events", { signal: line.signal, headers });
      if (!response.ok) {
        throw new Refused(response.status, `no events: status ${response.status}`);
      }
      this.#told.line("live", "live");
      for await (const message of messages(response.body, heard)) {
        const content = JSON.parse(message.data);
        if (message.event === "stats") {
          this.#told.stats(content);
        } else if (message.event === "event") {
          this.#last = message.id ?? this.#last;
          this.#told.event(content);
        }
      }
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
    }
  }

  /** Ask again and again, until it is time to try the stream once more. */
  async #poll(signal) {
    const until = performance.now() + RETRY_MS;
    while (performance.now() < until) {
      try {
        this.#told.full(await call("GET", "/stats"));
        this.#told.line("polling", "asking every 2 s");
      } catch (error) {
        this.#check(error, signal);
      }
      await pause(POLL_MS, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      signal.removeEventListener("abort", cancelled);
      resolve();
    }
    function cancelled() {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }
    signal.addEventListener("abort", cancelled, { once: true });
  });
}
