// The server refuses a file that is too large, but what sends it does not say so on the page: here it is told at once,
// and nothing is sent.

function refuseFilesOver(bytes) {
  const megabytes = (size) => Math.ceil(size / 2 ** 20);
  const refuse = (files, event) => {
    const large = [...(files ?? [])].find((file) => file.size > bytes);
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = ""; // so that the same file can be chosen again
    tell(`${large.name}: ${megabytes(large.size)} MB; expected at most ${megabytes(bytes)} MB. Nothing was sent.`);
  };
  document.addEventListener("change", (event) => refuse(event.target.files, event), true);
  document.addEventListener("drop", (event) => refuse(event.dataTransfer?.files, event), true);
  document.addEventListener("paste", (event) => refuse(event.clipboardData?.files, event), true);
}

function tell(words) {
  document.getElementById("refusal")?.remove();
  const told = document.createElement("button");
  told.id = "refusal";
  told.type = "button";
  told.title = "Close";
  told.setAttribute("role", "alert");
  told.textContent = words;
  told.onclick = () => told.remove();
  document.body.append(told);
}
