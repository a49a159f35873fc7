// Bundle the page's libraries into the folder that is named, with their licences and a manifest of both.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const BUNDLES = ["codemirror", "diff"];
const folder = process.argv[2];
/** @type {Map<string, string>} the folder of each package that is in a bundle, by its name */
const packages = new Map();

async function bundle(name) {
  const { metafile } = await build({
    entryPoints: [`${name}.js`],
    outfile: join(folder, `${name}.js`),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none", // all licences are in LICENSES.txt
    banner: { js: `// @ts-nocheck\n/* Made by "make vendor" from js/vendor. The licences are in LICENSES.txt. */` },
    metafile: true,
  });
  for (const input of Object.keys(metafile.inputs)) {
    const found = input.match(/^(node_modules\/((?:@[^/]+\/)?[^/]+))\//);
    if (found) packages.set(found[2], found[1]);
  }
}

const written = (name) => readFileSync(join(folder, name));

for (const name of BUNDLES) await bundle(name);

const sorted = [...packages].sort(([a], [b]) => (a < b ? -1 : 1));
const about = sorted.map(([name, at]) => ({ name, at, ...JSON.parse(readFileSync(join(at, "package.json"), "utf8")) }));
const licences = about.map(({ name, at, version, license }) => `${name} ${version} (${license})\n\n${readFileSync(join(at, "LICENSE"), "utf8").trim()}\n`);
writeFileSync(join(folder, "LICENSES.txt"), licences.join(`\n${"-".repeat(78)}\n\n`));

const files = [...BUNDLES.map((name) => `${name}.js`), "LICENSES.txt"];
const manifest = {
  packages: Object.fromEntries(about.map(({ name, version }) => [name, version])),
  sha256: Object.fromEntries(files.map((name) => [name, createHash("sha256").update(written(name)).digest("hex")])),
};
writeFileSync(join(folder, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
