/**
 * The trade tape: the newest trades on top, in rows that are used again.
 *
 * Trade numbers have no gaps, so a trade that comes twice is known and one that is missing, too.
 * They begin anew with another history of the pair: whoever hears of one clears the tape.
 */

import { timeOf, zoneAt } from "./clock.js";
import { spaced, whole } from "./decimals.js";
import { write } from "./ladder.js";

export const TAPE_ROWS = 60;

export class Tape {
  constructor(body, zone) {
    this.body = body;
    this.zone = zone;
    this.clear();
  }

  clear() {
    this.newest = 0;
    /** The moment of the newest trade, which tells its number from that of another history. */
    this.newestNs = "";
    this.waiting = [];
    /** The last price as text, and whether it is `up` or `down` from the one before it. */
    this.last = "";
    this.direction = "";
    this.body.replaceChildren();
  }

  /** Take trades, oldest first. */
  take(trades) {
    for (const trade of trades) {
      if (trade.trade_number <= this.newest) continue;
      this.newest = trade.trade_number;
      this.newestNs = trade.time_ns;
      this.turn(trade.price);
      this.waiting.push(trade);
    }
    this.waiting.splice(0, Math.max(0, this.waiting.length - TAPE_ROWS));
  }

  /** Say whether what comes after the trades here can be laid on top, up to this number. */
  reaches(newest) {
    return this.newest > 0 && this.newest <= newest && newest - this.newest < TAPE_ROWS;
  }

  turn(price) {
    const change = this.last ? whole(price) - whole(this.last) : 0;
    if (change) this.direction = change > 0 ? "up" : "down";
    this.last = price;
  }

  draw() {
    for (const trade of this.waiting) {
      const row = this.body.rows.length < TAPE_ROWS ? newRow() : this.body.rows[TAPE_ROWS - 1];
      row.dataset.side = trade.side ?? "";
      row.dataset.tradeNumber = trade.trade_number;
      row.cells[0].textContent = timeOf(trade.time_ns);
      row.cells[1].textContent = spaced(trade.price);
      row.cells[2].textContent = spaced(trade.quantity);
      this.body.prepend(row);
    }
    this.waiting.length = 0;
    write(this.zone, zoneAt(Date.now()));
  }
}

function newRow() {
  const row = document.createElement("tr");
  for (const name of ["time", "price", "quantity"]) row.insertCell().dataset.field = name;
  return row;
}
