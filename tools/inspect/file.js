// The page as a file: all data stand in it, and stay text until they are shown.

function readRecord(row, then) {
  then(JSON.parse(byId(`trajectory-${row.index}`).textContent));
}

start(JSON.parse(byId("summary-data").textContent));
