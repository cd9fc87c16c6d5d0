// What the page asks of the server. Errors are Errors, with a text for the visitor.

let token = "";

export function enterAs(given) {
  token = given;
}

export async function request(path, options) {
  let reply;
  try {
    reply = await fetch("api/" + path, { ...options, headers: { "X-Visitor": token } });
  } catch {
    throw new Error("The demo cannot be reached. Is it still running?");
  }
  if (!reply.ok) throw new Error(await refusal(reply.text()));
  return reply;
}

async function refusal(text) {
  try {
    return JSON.parse(await text).error;
  } catch {
    return "The demo gave no answer.";
  }
}

export const post = (path, body = {}) => request(path, { method: "POST", body: JSON.stringify(body) });
export const ask = async (path, body) => (await post(path, body)).json();

// The last event of a stream; each one goes to `tell` as it comes.
export async function stream(path, body, tell) {
  const reader = (await post(path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = {};
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        last = JSON.parse(line);
        if (last.error) throw new Error(last.error);
        tell(last);
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new Error("The connection to the demo was lost.") : error;
  }
  if (!("took" in last)) throw new Error("The connection to the demo was lost.");
  return last;
}

// XMLHttpRequest: fetch does not tell how far an upload is. Gives the call, to abort it, and what comes of it.
export function upload(file, progress) {
  const call = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    call.open("PUT", "api/upload?name=" + encodeURIComponent(file.name));
    call.setRequestHeader("X-Visitor", token);
    call.upload.onprogress = (event) => progress(event.loaded / event.total);
    call.onload = async () => {
      if (call.status === 200) resolve(JSON.parse(call.responseText));
      else reject(new Error(await refusal(call.responseText)));
    };
    call.onerror = () => reject(new Error("The upload failed: the demo closed the connection, or is not running."));
    call.onabort = () => reject(new Error("The upload was stopped."));
    call.send(file);
  });
  return { done, abort: () => call.abort() };
}

// The page goes away.
export function leave() {
  if (token) fetch("api/leave", { method: "POST", body: "{}", keepalive: true, headers: { "X-Visitor": token } });
}
