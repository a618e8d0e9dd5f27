// The endpoint with fetch, in Node 18 or newer or in a browser: one reply, a vote, a stream.
//
//   node examples/javascript_fetch.mjs                            http://127.0.0.1:8000
//   URL=https://... KEY=... node examples/javascript_fetch.mjs    over ngrok

const url = process.env.URL ?? "http://127.0.0.1:8000";
const key = process.env.KEY ?? "none"; // needed where the server has one

async function post(fields) {
  const reply = await fetch(`${url}/phase1/reasoning`, {
    method: "POST",
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  });
  if (!reply.ok) {
    throw new Error(`${reply.status}: ${(await reply.json()).error.message}`);
  }
  return reply;
}

// Yields [event, data]. A chunk of the network may end in the middle of an event, of a line, even
// of a letter: so the decoder is told that more follows, and what is not whole yet is kept.
async function* events(body) {
  const decoder = new TextDecoder();
  let buffer = "";
  for await (const chunk of body) {
    buffer += decoder.decode(chunk, { stream: true });
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      let event = "message";
      const data = [];
      for (const line of block.split("\n")) {
        const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
        if (field === "event") event = value;
        else if (field === "data") data.push(value);
      }
      if (data.length) yield [event, JSON.parse(data.join("\n"))]; // else a comment: keep-alive
    }
  }
}

const question = "Calculate 23 + 15 + 8";

const reply = await (await post({ prompt: question, temperature: 0 })).json();
console.log(`reasoning:\n${reply.reasoning}\nanswer: ${reply.answer}`);

const voted = await (await post({ prompt: "Calculate 417 + 85 + 9", n: 8, seed: 1 })).json();
console.log(`votes: ${JSON.stringify(voted.vote.votes)}, answer: ${voted.answer}`);

console.log("stream:");
const streamed = await post({ prompt: question, temperature: 0, stream: true });
for await (const [event, data] of events(streamed.body)) {
  if (event === "reasoning") process.stdout.write(data.delta);
  else if (event === "error") throw new Error(data.error.message);
  else if (event === "done") {
    console.log(`\nanswer: ${data.answer} (${data.timing.tokens_per_second} tokens/s)`);
  }
}
