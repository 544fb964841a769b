/**
 * The clock of the chart's axis: the page's own for candles within a day, UTC for days and weeks,
 * which the exchange counts in UTC.
 */

import { TickMarkType, defaultHorzScaleBehavior } from "./vendor/lightweight-charts.mjs";
import { aheadOfUtc, zoneAt } from "./clock.js";

const DATE = { day: "numeric", month: "short" };
const FORMS = {
  [TickMarkType.Year]: { year: "numeric" },
  [TickMarkType.Month]: { month: "short" },
  [TickMarkType.DayOfMonth]: DATE,
  [TickMarkType.Time]: { hour: "2-digit", minute: "2-digit" },
  [TickMarkType.TimeWithSeconds]: { timeStyle: "medium" },
};
const DAY = { weekday: "short", ...DATE, year: "numeric" };
const MOMENT = { weekday: "short", ...DATE, hour: "2-digit", minute: "2-digit", second: "2-digit" };

export class ChartClock extends defaultHorzScaleBehavior() {
  wholeDays = false;

  /** Return what the axis shows, in a few words. */
  zone() {
    return this.wholeDays ? "UTC days" : zoneAt(Date.now());
  }

  /** Return the text of a mark on the axis. */
  mark(timeS, type) {
    return this.written(timeS, FORMS[type]);
  }

  /** Return the text of one moment, for the crosshair. */
  moment(timeS) {
    return this.wholeDays
      ? `${this.written(timeS, DAY)} UTC`
      : `${this.written(timeS, MOMENT)} ${zoneAt(1_000 * timeS)}`;
  }

  written(timeS, form) {
    const zone = this.wholeDays ? { timeZone: "UTC" } : {};
    const format = new Intl.DateTimeFormat("en-GB", { hourCycle: "h23", ...form, ...zone });
    return format.format(1_000 * timeS);
  }

  /** Give each point its weight among the marks: the library's own choice, at the time shown. */
  fillWeightsForPoints(points, start) {
    const first = Math.max(0, start - 1);
    const shown = points.slice(first).map(({ time }) => {
      const seconds = this.key(time);
      const shownS = this.wholeDays ? seconds : seconds + aheadOfUtc(seconds);
      return { time: this.convertHorzItemToInternal(shownS) };
    });
    super.fillWeightsForPoints(shown, start - first);
    for (let at = start; at < points.length; at++) {
      points[at].timeWeight = shown[at - first].timeWeight;
    }
  }
}
