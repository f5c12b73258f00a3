// SPDX-License-Identifier: Apache-2.0
// Fetches the page once a second and replaces only what has changed, so that focus and reading position stay.
"use strict";

async function refresh() {
  const response = await fetch(location.href, { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
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
    // The sandbox may stop and start again.
    if (!document.hidden) await refresh().catch(() => {});
  }
}

forever();
