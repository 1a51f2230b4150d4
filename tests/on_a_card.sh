#!/usr/bin/env bash
# tests/on_a_card.sh PIPE BINARIES [WORK]: all that only a machine with a GPU can tell, in one call.
#
#     PIPE      the program, built with `cargo build --release --features cuda` (may be stripped)
#     BINARIES  a folder with the test binaries `lib` and `reference` of `cargo test --release --features cuda --no-run`
#     WORK      a folder for models and runs; default: a temporary one
#
# Needs libcublas and libnvrtc of CUDA 12 or 13 (CUDA_HOME, LD_LIBRARY_PATH, or those that torch brought along), and
# python3 with tests/requirements.txt. References, the tweets and PEFT's script are looked for in ../shared beside
# the repository, or in what SHARED names. Each part says what it found and whether that will do; the last lines are the
# summary, the exit code the number of parts that failed.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
pipe=$(realpath "$1"); binaries=$(realpath "$2"); work=${3:-$(mktemp -d)}; mkdir -p "$work"; work=$(realpath "$work")
export SHARED=${SHARED:-$here/../shared} PIPE_HOME=$work/state PYTHONUNBUFFERED=1 CARGO_MANIFEST_DIR=$here
# torch's own CUDA libraries, where there is no toolkit.
libraries=$(python3 - <<'PYTHON'
import glob, os, sysconfig
print(":".join(sorted({os.path.dirname(p) for p in glob.glob(os.path.join(sysconfig.get_path("purelib"), "nvidia", "**", "lib*.so*"), recursive=True)})))
PYTHON
)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
failed=(); summary=()
part() { # NAME COMMAND…
    local name=$1; shift
    printf '\n== %s\n' "$name"
    local begun=$SECONDS
    if "$@"; then summary+=("well    $name ($((SECONDS - begun)) s)"); else failed+=("$name"); summary+=("FAILED  $name"); fi
}

part "the devices" "$pipe" devices
part "the engine against the processor, f32 and bf16" "$binaries/lib" --ignored --test-threads 1 on_a_card
part "the references are here (SHARED)" test -d "$SHARED/reference"
part "the references within 1e-3 at f32" env PIPE_TEST_DEVICE=cuda:0 "$binaries/reference" --test-threads 1 --nocapture \
    recipe trainer adapter gpt2_full
for check in smollm2 memory lanes guide generation; do
    part "$check" python3 "$here/tests/on_a_card.py" "$check" "$pipe" "$work"
done

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
exit ${#failed[@]}
