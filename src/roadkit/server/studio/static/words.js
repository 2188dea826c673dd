// Which words of an answer differ from another's: those outside a longest common subsequence.
//
//   differing("It is Rome.", "It is Paris.")  →  [["It is ", false], ["Rome.", true]]

const LONGEST = 1200; // words compared; beyond, the rest is shown as it is

export function differing(text, reference) {
  const pieces = text.match(/\s+|\S+/g) ?? [];
  const words = pieces.filter((piece) => piece.trim());
  const others = (reference.match(/\S+/g) ?? []).slice(0, LONGEST);
  const mine = words.slice(0, LONGEST);
  const common = commonWords(mine, others);
  const differs = (word) => word >= 0 && word < mine.length && !common[word];
  const runs = [];
  let word = 0; // the next one
  for (const piece of pieces) {
    const marked = piece.trim() ? differs(word++) : differs(word - 1) && differs(word); // space between two marked words
    if (runs.length && runs.at(-1)[1] === marked) runs.at(-1)[0] += piece;
    else runs.push([piece, marked]);
  }
  return runs;
}

function commonWords(mine, others) {
  const common = new Uint8Array(mine.length);
  let start = 0;
  let [end, otherEnd] = [mine.length, others.length];
  while (start < end && start < otherEnd && mine[start] === others[start]) common[start++] = 1;
  while (end > start && otherEnd > start && mine[end - 1] === others[otherEnd - 1]) {
    common[--end] = 1;
    otherEnd--;
  }
  const [rows, width] = [end - start, otherEnd - start + 1];
  const length = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i--)
    for (let j = width - 2; j >= 0; j--)
      length[i * width + j] =
        mine[start + i] === others[start + j]
          ? length[(i + 1) * width + j + 1] + 1
          : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
  for (let i = 0, j = 0; i < rows && j < width - 1; ) {
    if (mine[start + i] === others[start + j]) {
      common[start + i++] = 1;
      j++;
    } else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++;
    else j++;
  }
  return common;
}
