/**
 * The trade tape: the newest trades on top, in rows that are used again.
 *
 * Trade numbers have no gaps, so a trade that comes twice is known and one that is missing, too.
 */

import { spaced } from "./decimals.js";

const ROWS = 40;

export class Tape {
  constructor(body) {
    this.body = body;
    this.clear();
  }

  clear() {
    this.newest = 0;
    this.waiting = [];
    this.body.replaceChildren();
  }

  /** Take trades, oldest first. */
  take(trades) {
    for (const trade of trades) {
      if (trade.trade_number <= this.newest) continue;
      this.newest = trade.trade_number;
      this.waiting.push(trade);
    }
    this.waiting.splice(0, Math.max(0, this.waiting.length - ROWS));
  }

  draw() {
    for (const trade of this.waiting) {
      const row = this.body.rows.length < ROWS ? newRow() : this.body.rows[ROWS - 1];
      row.dataset.side = trade.side ?? "";
      row.dataset.tradeNumber = trade.trade_number;
      row.cells[0].textContent = clock(trade.time_ns);
      row.cells[1].textContent = spaced(trade.price);
      row.cells[2].textContent = spaced(trade.quantity);
      this.body.prepend(row);
    }
    this.waiting.length = 0;
  }
}

function newRow() {
  const row = document.createElement("tr");
  for (const name of ["time", "price", "quantity"]) row.insertCell().dataset.field = name;
  return row;
}

function clock(timeNs) {
  const moment = new Date(Number(BigInt(timeNs) / 1_000_000n));
  return moment.toLocaleTimeString("en-GB", { hour12: false });
}
