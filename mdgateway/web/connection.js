/**
 * One WebSocket to the gateway, through all its lives.
 *
 * It keeps what is subscribed and asks for it again after every reconnect, measures the way there
 * and back, and notices silence: the gateway says something each second, so three silent seconds
 * mean that the line is dead, whatever the browser thinks. What the messages mean is not known
 * here.
 */

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 4_000;
const SILENCE_MS = 3_000;
const PING_MS = 2_000;

export class Connection {
  /**
   * @param {string} url
   * @param {object} told
   * @param {(message: object) => void} told.onMessage
   * @param {(state: "live"|"lost"|"refused", sentence: string) => void} told.onState
   * @param {(latencyMs: number) => void} told.onLatency
   * @param {() => Promise<{message: string, pauseMs: number}|null>} told.explain asked why a
   *   connection could not be opened; null: nobody answers
   */
  constructor(url, told) {
    this.url = url;
    this.told = told;
    this.wanted = new Map();
    this.pauseMs = FIRST_PAUSE_MS;
    this.socket = null;
    this.nextId = 1;
    this.heardMs = 0;
    this.pinged = new Map();
    setInterval(() => this.look(), 500);
    setInterval(() => this.ping(), PING_MS);
    this.open();
  }

  /** Subscribe now and after every reconnect; `request` is asked anew each time. */
  subscribe(name, request) {
    this.wanted.set(name, request);
    this.send({ op: "subscribe", ...request() });
  }

  /** End a subscription. */
  unsubscribe(name) {
    const request = this.wanted.get(name);
    if (!request) return;
    this.wanted.delete(name);
    const { channel, pairs, interval } = request();
    this.send({ op: "unsubscribe", channel, pairs, ...(interval ? { interval } : {}) });
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(JSON.stringify({ id: this.nextId++, ...message }));
  }

  open() {
    const socket = new WebSocket(this.url);
    let opened = false;
    this.socket = socket;
    this.heardMs = performance.now();
    socket.onopen = () => {
      opened = true;
      for (const request of this.wanted.values()) this.send({ op: "subscribe", ...request() });
      this.ping();
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.hear(JSON.parse(event.data));
    };
    socket.onclose = () => {
      if (socket === this.socket) this.lose(opened);
    };
  }

  hear(message) {
    this.heardMs = performance.now();
    this.pauseMs = FIRST_PAUSE_MS;
    this.told.onState("live", "");
    if (message.type !== "pong") {
      this.told.onMessage(message);
    } else if (this.pinged.has(message.id)) {
      this.told.onLatency(this.heardMs - this.pinged.get(message.id));
      this.pinged.delete(message.id);
    }
  }

  ping() {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.pinged.set(this.nextId, performance.now());
    this.send({ op: "ping" });
  }

  look() {
    if (this.socket && performance.now() - this.heardMs > SILENCE_MS) {
      const socket = this.socket;
      this.lose(true);
      socket.close();
    }
  }

  async lose(opened) {
    this.socket = null;
    this.pinged.clear();
    const refusal = opened ? null : await this.told.explain();
    if (refusal) this.told.onState("refused", refusal.message);
    else this.told.onState("lost", "");
    // Not all pages of a gateway that restarts come back at the same moment.
    const pauseMs = Math.max(this.pauseMs, refusal?.pauseMs ?? 0) * (0.5 + Math.random());
    setTimeout(() => this.open(), pauseMs);
    this.pauseMs = Math.min(2 * this.pauseMs, LONGEST_PAUSE_MS);
  }
}
