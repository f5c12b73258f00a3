// SPDX-License-Identifier: Apache-2.0
// Fetches the page once a second and puts what has changed in place; nobody's focus or reading is disturbed.
"use strict";

async function refresh() {
  const answer = await fetch("/", { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    update(part, fresh.getElementById(part.id));
  }
}

function update(part, fresh) {
  if (part.children.length !== fresh.children.length) {
    part.replaceChildren(...fresh.childNodes);
    return;
  }
  for (let index = 0; index < part.children.length; index += 1) {
    if (part.children[index].outerHTML !== fresh.children[index].outerHTML) {
      part.children[index].replaceWith(fresh.children[index].cloneNode(true));
    }
  }
}

async function forever() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    // The sandbox may be gone and come back.
    if (!document.hidden) await refresh().catch(() => {});
  }
}

forever();
