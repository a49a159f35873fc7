// What the page takes of jsdiff.
export { diffArrays, diffWordsWithSpace } from "diff";
