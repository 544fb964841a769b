/**
 * Candles with volume, drawn by TradingView Lightweight Charts. Older candles are fetched when the
 * left end comes into sight. The chart is a picture: its numbers are floating point, those that are
 * read as text come from elsewhere.
 */

import {
  CandlestickSeries,
  ColorType,
  HistogramSeries,
  createChartEx,
} from "./vendor/lightweight-charts.mjs";
import { ChartClock } from "./chart_clock.js";
import { decimalsOf, spaced, text } from "./decimals.js";
import { write } from "./ladder.js";

const NEAR_THE_LEFT_END = 20;

export class CandleChart {
  /**
   * `older` is asked for candles before a second; it returns a promise of them, oldest first, or of
   * null if they cannot be had now. `legend` is told the candle under the pointer, or the newest.
   */
  constructor(element, legend, older) {
    this.element = element;
    this.legend = legend;
    this.older = older;
    this.clock = new ChartClock();
    this.chart = createChartEx(element, this.clock, this.options());
    this.candles = this.chart.addSeries(CandlestickSeries, { borderVisible: false });
    this.volume = this.chart.addSeries(HistogramSeries, {
      priceScaleId: "volume",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.8, bottom: 0 } });
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => this.reach(range));
    this.chart.subscribeCrosshairMove(({ logical }) => this.point(logical));
    this.clear();
  }

  options() {
    const tickMarkFormatter = (time, type) => this.clock.mark(time, type);
    return {
      autoSize: true,
      layout: { attributionLogo: false, fontFamily: "inherit" },
      timeScale: {
        timeVisible: true,
        secondsVisible: true,
        rightOffset: 4,
        barSpacing: 9,
        tickMarkFormatter,
      },
      rightPriceScale: { borderVisible: false, entireTextOnly: true },
      localization: {
        locale: "en-GB",
        // The library wants to know it, though moments are written by the formatter.
        dateFormat: "dd MMM yyyy",
        timeFormatter: (time) => this.clock.moment(time),
      },
    };
  }

  /** Forget all candles; what comes next is of this interval. */
  clear(interval = "") {
    this.clock.wholeDays = /[dw]$/.test(interval);
    this.rows = [];
    this.pointed = null;
    this.complete = false;
    this.fetching = false;
    this.show();
  }

  colour(colours) {
    this.colours = colours;
    this.chart.applyOptions({
      layout: {
        background: { type: ColorType.Solid, color: colours.panel },
        textColor: colours.text,
      },
      grid: { vertLines: { color: colours.line }, horzLines: { color: colours.line } },
      timeScale: { borderColor: colours.line },
    });
    this.candles.applyOptions({
      upColor: colours.bid,
      downColor: colours.ask,
      wickUpColor: colours.bid,
      wickDownColor: colours.ask,
    });
    this.show();
  }

  /** Take a message of the candles channel. */
  take(message) {
    if (message.type === "snapshot") {
      this.rows = message.candles;
      this.complete = false;
      this.show();
      this.chart.timeScale().scrollToRealTime();
    } else {
      for (const candle of message.candles) this.update(candle);
    }
  }

  update(candle) {
    const last = this.rows.at(-1);
    if (last && candle.start_s < last.start_s) return;
    if (last?.start_s === candle.start_s) this.rows[this.rows.length - 1] = candle;
    else this.rows.push(candle);
    this.candles.update(bar(candle));
    this.volume.update(this.column(candle));
    this.describe();
  }

  show() {
    if (this.rows.length) {
      const decimals = decimalsOf(this.rows[0].close);
      const formatter = (price) => text(Math.round(price * 10 ** decimals), decimals);
      const priceFormat = { type: "custom", formatter, minMove: 10 ** -decimals };
      this.candles.applyOptions({ priceFormat });
    }
    this.candles.setData(this.rows.map(bar));
    this.volume.setData(this.rows.map((candle) => this.column(candle)));
    this.describe();
  }

  point(logical) {
    this.pointed = logical ?? null;
    this.describe();
  }

  /** Say the newest candle in words, for those who do not see the picture, and fill the legend. */
  describe() {
    const { open, high, low, close, volume } = this.rows.at(-1) ?? {};
    const words =
      `newest: open ${open}, high ${high}, low ${low}, close ${close}, volume ${volume}`;
    this.element.setAttribute("aria-label", close ? `Candles, ${words}` : "Candles, none yet");
    const shown = this.rows[this.pointed] ?? this.rows.at(-1);
    for (const place of this.legend.children) {
      write(place.lastElementChild, shown ? spaced(shown[place.dataset.of]) : "–");
      place.dataset.side = shown ? sideOf(shown) : "";
    }
  }

  column(candle) {
    const colour = sideOf(candle) === "buy" ? this.colours?.bid : this.colours?.ask;
    return { time: candle.start_s, value: Number(candle.volume), color: `${colour}66` };
  }

  async reach(range) {
    if (!range || range.from > NEAR_THE_LEFT_END || !this.rows.length) return;
    if (this.complete || this.fetching) return;
    this.fetching = true;
    const rows = this.rows;
    const older = await this.older(rows[0].start_s);
    this.fetching = false;
    // Another pair or interval may have been chosen meanwhile.
    if (rows !== this.rows || older === null) return;
    this.complete = !older.length;
    if (older.length) {
      this.rows = [...older, ...rows];
      this.show();
    }
  }
}

function sideOf(candle) {
  return Number(candle.close) >= Number(candle.open) ? "buy" : "sell";
}

function bar(candle) {
  return {
    time: candle.start_s,
    open: Number(candle.open),
    high: Number(candle.high),
    low: Number(candle.low),
    close: Number(candle.close),
  };
}
