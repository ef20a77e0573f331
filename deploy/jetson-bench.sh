#!/usr/bin/env bash
# Build a bundle on a Jetson, run `valle2 bench latency` on it and keep the JSON.
#
#   deploy/jetson-bench.sh BUNDLE [OUT.json]
#
# BUNDLE holds the variant primitive for JetPack 6, or portable for TensorRT 10.15 and newer. Set the power mode
# first: sudo nvpmodel -m 0 && sudo jetson_clocks. Variables: PRECISION (fp16), MAX_FRAMES (1024),
# WORKSPACE (256 MiB).
set -euo pipefail

bundle=${1:?"give the bundle's folder: deploy/jetson-bench.sh BUNDLE [OUT.json]"}
out=${2:-jetson-bench.json}
precision=${PRECISION:-fp16}

fail() {
    echo "jetson-bench: $1" >&2
    exit 1
}

[[ -f $bundle/manifest.json ]] || fail "$bundle has no manifest.json; give a folder made by valle2 export"
command -v valle2 > /dev/null || fail "valle2 is not installed; see docs/embedded.md"
python3 -c 'import tensorrt' 2> /dev/null ||
    fail "python3 cannot import tensorrt; make the environment with python3 -m venv --system-site-packages"

if [[ -f /etc/nv_tegra_release ]]; then
    head -n 1 /etc/nv_tegra_release >&2
fi
if command -v nvpmodel > /dev/null; then
    nvpmodel -q >&2 || true
fi

valle2 build "$bundle" --target tensorrt --precision "$precision" \
    --max-batch 8 --max-frames "${MAX_FRAMES:-1024}" --workspace "${WORKSPACE:-256}"

aside=$(mktemp "$out.XXXXXX")
trap 'rm -f "$aside"' EXIT
valle2 bench latency --model "$bundle" --device cuda --engine tensorrt --precision "$precision" --json > "$aside"
python3 -m json.tool "$aside" > /dev/null || fail "the benchmark printed no JSON"
mv "$aside" "$out"
echo "$out"
