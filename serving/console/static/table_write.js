// Writing out the marked images: begun by a button, watched until it has ended, with what to do next.
//
//   const writing = new Writing(button, place, say)      say(words) tells those who do not see the page
//   writing.count(12)                                    images that are marked now

import { ask, sendJson } from "./ask.js";
import { html, whole } from "./html.js";

const PAUSE_MS = 400;

export class Writing {
  constructor(button, place, say) {
    this.button = button;
    this.place = place;
    this.say = say;
    this.marked = 0;
    this.isRunning = false;
    button.addEventListener("click", () => this.follow(() => sendJson("/api/table/written")));
    this.follow(() => ask("/api/table/written"));
  }

  count(marked) {
    this.marked = marked;
    this.button.textContent = marked === 1 ? "Write out 1 marked image" : `Write out ${whole(marked)} marked images`;
    this.button.disabled = marked === 0 || this.isRunning;
  }

  async follow(begin) {
    try {
      let progress = await begin();
      while (progress.state === "running") {
        this.isRunning = true;
        if (progress.done === 0) this.say("Writing marked images.");
        this.show(progress);
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        progress = await ask("/api/table/written");
      }
      if (this.isRunning) this.say(progress.error ?? "The marked images are written.");
      this.isRunning = false;
      this.show(progress);
    } catch (error) {
      this.isRunning = false;
      this.place.replaceChildren(html("p", { class: "problem" }, error.message));
    }
    this.count(this.marked);
  }

  show(progress) {
    this.count(this.marked);
    const parts = { none: () => [], running, failed, done: finished }[progress.state](progress);
    this.place.replaceChildren(...parts);
  }
}

function running({ done, total }) {
  const bar = html("progress", { max: total, value: done, "aria-label": "Writing marked images" });
  return [html("p", {}, `Writing ${whole(done)} of ${whole(total)} images …`), bar];
}

function failed({ error }) {
  return [html("p", { class: "problem" }, error)];
}

function finished(progress) {
  const { labels, kept, folders, folder } = progress;
  const count = labels.reduce((sum, [, images]) => sum + images, 0);
  const classes = labels.map(([label, images]) => `${label} (${whole(images)})`).join(", ");
  const renamed = folders.map(([label, name]) => `The folder of ${label} is ${name}, as no folder can have its name.`);
  const former = kept ? [`${whole(kept)} of them cannot be had from the source any more; their former files were kept.`] : [];
  return [
    html("div", { class: "panel" }, [
      html("p", {}, [html("strong", {}, `Wrote ${whole(count)} images`), ` to ${folder}: ${classes}.`]),
      ...[...renamed, ...former].map((words) => html("p", {}, words)),
      ...left(progress),
      next(labels.length, folder),
    ]),
  ];
}

function left({ not_written: count, listed }) {
  if (!count) return [];
  const more = count > listed.length ? [html("li", {}, `and ${whole(count - listed.length)} more`)] : [];
  return [
    html("p", {}, `${whole(count)} could not be written; their marks stay:`),
    html("ul", {}, [...listed.map(([key, why]) => html("li", {}, `${key}: ${why}`)), ...more]),
  ];
}

function next(classes, folder) {
  if (classes < 2) return html("p", {}, "To train on them alone there must be a second class; or copy them into the folders that you train on.");
  return html("p", {}, ["Train on them: ", html("code", {}, `python -m training train --data ${folder}`), ", or copy them into the folders that you train on."]);
}
