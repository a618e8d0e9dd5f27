
// Renews the page in place while `python -m rlm.report watch` serves it: what is unfolded stays so,
// and the chosen question stays chosen. A page that nobody sees asks for nothing.
function swap(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const id of ["figures", "settings"]) {
    const open = [...at(id).querySelectorAll("details")].map((fold) => fold.open);
    const renewed = fresh.getElementById(id);
    renewed.querySelectorAll("details").forEach((fold, i) => { fold.open = Boolean(open[i]); });
    if (!renewed.isEqualNode(at(id))) at(id).replaceChildren(...renewed.childNodes);
  }
  document.title = fresh.title;
  at("watched").dataset.tag = fresh.getElementById("watched").dataset.tag;
  take(JSON.parse(fresh.getElementById("data").textContent));
}

async function renew() {
  const { tag, every } = at("watched").dataset;
  if (!document.hidden) {
    try {
      const reply = await fetch(location.href, { cache: "no-store", headers: { "If-None-Match": tag } });
      if (reply.status === 200) swap(await reply.text());
      else if (reply.status !== 304) throw new Error(reply.statusText);
      at("lost").hidden = true;
    } catch {
      at("lost").hidden = false;
    }
  }
  setTimeout(renew, 1000 * every);
}
setTimeout(renew, 1000 * at("watched").dataset.every);
