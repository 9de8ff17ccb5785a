#!/bin/sh
# Packs what other projects install into dist/socket-service-VERSION.tgz, and prints that path: the module's
# sources, their declarations, the preload, which make has built, and the module's pages.
#
#   test/package/pack.sh BUN
#
# It is put together in dist/package, because a package's README is that at its root.
set -eu
bun=$PWD/$1
rm -rf dist/package dist/declarations
mkdir -p dist/package/src
"$bun" node_modules/typescript/bin/tsc --noEmit false --declaration --emitDeclarationOnly \
  --outDir dist/declarations
mv dist/declarations/src/activation dist/package/types
rm -r dist/declarations
cp -r src/activation dist/package/src
mv dist/package/src/activation/README.md dist/package/src/activation/REFERENCE.md dist/package
cp -r package.json LICENSE dist/register.js dist/register dist/package
chmod -R u=rwX,go=rX dist/package
cd dist/package
"$bun" pm pkg delete private scripts devDependencies
"$bun" pm pack --quiet --destination ..
