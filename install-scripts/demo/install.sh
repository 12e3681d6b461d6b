#!/bin/sh
# The demo's install script: runs once, in a container of its own, before the first start.
set -eu
cd /home/container
echo "[install] making the web page"
mkdir -p www
cat >www/index.html <<'PAGE'
<!doctype html>
<title>lightd demo</title>
<h1>It runs.</h1>
<p>This page comes from a container that lightd installed, started and watches.</p>
PAGE
echo "[install] done"
