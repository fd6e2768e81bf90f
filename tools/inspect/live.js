// The page of a run that may still be going on: the server is asked for what is new, and for each trajectory shown.

const POLL_MS = 2000;
let version = null;

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.status === 204 ? null : answer.json();
}

function say(text) {
  byId("live-status").textContent = text;
}

async function readRecord(row, then) {
  try {
    const record = await ask(`trajectories/${row.index}`);
    // A run that was resumed has dropped some: the next summary brings them up to date.
    if (record.trajectory_id === row.id) then(record);
  } catch (error) {
    say(`no answer (${error.message})`);
  }
}

function showNewest() {
  const newest = all.at(-1)?.iteration;
  if (state.current?.iteration === newest) return;
  state.matching = all.filter(matches);
  const first = state.matching.find((row) => row.iteration === newest);
  if (first) show(first);
}

function update(found) {
  const shown = state.current?.id;
  setSummary(found);
  showRun();
  state.current = all.find((row) => row.id === shown) ?? null;
  if (follows()) showNewest();
  applyFilters();
}

function begin(found) {
  byId("follow").checked = !found.trajectories.some((row) => hashOf(row) === location.hash);
  start(found);
  if (follows()) showNewest();
}

async function poll() {
  try {
    const found = await ask(version === null ? "summary" : `summary?after=${version}`);
    if (found) {
      if (version === null) begin(found.summary);
      else update(found.summary);
      version = found.version;
    }
    say(`up to date at ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    say(`no answer (${error.message}): is python -m tools.inspect --serve still there?`);
  }
  setTimeout(poll, POLL_MS);
}

byId("live").hidden = false;
byId("follow").addEventListener("change", () => {
  if (follows()) showNewest();
});
poll();
