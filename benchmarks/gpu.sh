#!/usr/bin/env bash
# Every figure of this project that needs a GPU, on one card, in one table.
#
#   bash benchmarks/gpu.sh [TABLE]         (benchmarks/gpu.txt)
#
# Runs from any directory, by the python that is active (PYTHON); it needs what requirements.txt
# lists and no network, no model and no images. Each part is given up after PART_SEC seconds (150),
# says so in the table and lets the others run; the exit status is then 1.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python}
table=${1:-benchmarks/gpu.txt}
part_sec=${PART_SEC:-150}
device=${DEVICE:-cuda}
status=0

part() {	# part NAME COMMAND...
	local name=$1 took=$SECONDS rc=0
	shift
	printf '\n%s\n' "$name"
	timeout "$part_sec" "$@" 2>"$errors" || rc=$?
	if ((rc != 0)); then
		status=1
		printf 'not measured: exit %s after %s s: %s\n' "$rc" "$((SECONDS - took))" "$(tail -n 1 "$errors")"
	fi
}

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
: >"$table" || exit 2
exec > >(tee "$table")
part 'generators from scratch' "$python" benchmarks/generators.py --device "$device" --only scratch
part 'Stable Diffusion arms' "$python" benchmarks/generators.py --device "$device" --only adapters
if [[ $device == cuda ]]; then
	part 'CNN: ResNet-18, 256 px, batch 128' "$python" benchmarks/cnn_throughput.py --model resnet18 \
		--image-size 256 --batch-size 128 --device cuda --workers "$(nproc)"
else
	part 'CNN: the small one, 64 px' "$python" benchmarks/cnn_throughput.py --device "$device"
fi
exit "$status"
