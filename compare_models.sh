#!/usr/bin/env bash
#SBATCH --job-name=lungkit-compare
#SBATCH --time=12:00:00
#SBATCH --cpus-per-task=8
#SBATCH --signal=B:USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train the CNN N times on every dataset of a run, test each time on the same real images, and
# compare the accuracies pairwise by Wilcoxon rank-sum tests.
#
#   bash compare_models.sh 20               or, from the project directory,
#   sbatch --mem=32G compare_models.sh 50   one task, or one CNN per task and GPU:
#   sbatch --ntasks=4 --gpus-per-task=1 --mem-per-cpu=4G compare_models.sh 50
#   bash compare_models.sh 20 --dry-run     only check the options, and the data that is there
#
# A larger N adds only the missing repeats, a smaller one uses the first N. Before the first training
# of a run it says what so many can show, and writes that down (RUN/comparison/plan.json); a plan that
# cannot reach an answer ends here. Running the same command again resumes. Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options,
# 75 stopped, run it again. Options, by environment:

RUN=${RUN:-}				# run directory (runs/demo)
DATASETS=${DATASETS:-}			# names to compare, e.g. "real voronoi" (all in RUN/datasets)
PRESET=${PRESET:-}			# demo or full (the run's)
MODEL=${MODEL:-}			# a network of cnn_classify.py: small, resnet18, ... (by preset)
REPLICATES=${REPLICATES:-}		# those to compare (all that the run has)
METRIC=${METRIC:-}			# score to compare: auroc, macro_f1, ... (as planned; accuracy_real)
MARGIN=${MARGIN:-}			# difference of no account, 0.02 is two points (as planned; 0.02)
FORCE=${FORCE:-}			# 1: also by a plan that cannot reach an answer
SEED=${SEED:-0}				# repeat i of replicate r has seed SEED + 1000 r + i
BASELINE=${BASELINE-all}		# classical baselines: nuclei, on the nuclei's features of
					# RUN/datasets/voronoi; of CT size, the ruler, and nodule, with texture (all
					# that the data have); BASELINE= for none
FIDELITY=${FIDELITY-1}			# 0: do not measure how like real each arm's images are, nor show it
					# and which are copies of training images
SEGMENT=${SEGMENT:-}			# 1: also train N U-Nets on each dataset with masks of nodules, or else of
					# tumour, and compare them by Dice where two have them: RUN/segment; where
					# only real has some, two U-Nets, for nothing is compared
OUTLIERS=${OUTLIERS:-}			# 1: also look for outliers among real's training images: RUN/outliers
SCREEN=${SCREEN:-}			# 1: also try networks on folds of real's training images, and say which is
					# enough; it decides nothing here: RUN/searches/screen
TUNE=${TUNE:-}				# N: also try N settings of the CNN on such folds: RUN/searches/tune
TUNED=${TUNED:-}			# 1: train all CNNs of the run with what TUNE found, which is then first
EXPLAIN=${EXPLAIN:-}			# 1: also keep a CNN of real (RUN/kept) and show where it looks: RUN/explain
WORKERS=${WORKERS:-}			# trainings at a time (one per Slurm task, GPU or core)
CNN_OPTIONS=${CNN_OPTIONS:-}		# more options of cnn_classify.py, e.g. "--steps 500"
UNET_OPTIONS=${UNET_OPTIONS:-}		# more options of unet_segment.py, e.g. "--steps 1000"
OUTLIERS_OPTIONS=${OUTLIERS_OPTIONS:-}	# of outliers.py, e.g. "--share 0.05"
SCREEN_OPTIONS=${SCREEN_OPTIONS:-}	# of cnn_search.py screen, e.g. "--weights imagenet --mode both"
TUNE_OPTIONS=${TUNE_OPTIONS:-}		# of cnn_search.py tune, e.g. "--search learning_rate augment"
EXPLAIN_OPTIONS=${EXPLAIN_OPTIONS:-}	# of cnn_explain.py, e.g. "--mask nuclei"
TEST_OPTIONS=${TEST_OPTIONS:-}		# more options of wilcoxon_test.py, e.g. "--alpha 0.01"
MAX_RESTARTS=${MAX_RESTARTS:-100}	# requeues by this job itself before it gives up
# and those of setup_env.sh: VENV PYTHON MODULES TORCH_INDEX_URL

[ -n "${BASH_VERSION:-}" ] || { echo "compare_models: error: this is no script of sh: run it by 'bash compare_models.sh'" >&2; exit 2; }
set -euo pipefail +o posix
unset CDPATH

# Under sbatch this file is a copy elsewhere: the project is where it was submitted.
for project in "$(dirname "${BASH_SOURCE[0]}")" "${SLURM_SUBMIT_DIR:-.}" . ''; do
	[[ ! -f $project/lungkit/job.sh ]] || break
done
if [[ -z $project ]]; then
	echo "compare_models: error: the project is not here: submit from its directory (cd PROJECT; sbatch compare_models.sh)" >&2
	exit 2
fi
project=$(cd "$project" && pwd)
# shellcheck source=lungkit/job.sh
source "$project/lungkit/job.sh"
job=compare_models
only_rank_0

dry_run=''
early=${LUNGKIT_EARLY:-}	# the run's last arms are being made: train on what is there, compare nothing
if [[ ${!#} == --dry-run ]]; then
	dry_run=yes
	set -- "${@:1:$#-1}"
fi
(($# <= 1)) || bad_option "usage: compare_models.sh [N] [--dry-run]; other options are environment variables, see its first lines"
run_dir=$(absolute "${RUN:-$project/runs/demo}")
read -ra tasks <<<"$(kept tasks)"
if ((${#tasks[@]} > 0)); then	# a run of several: each is compared, then all
	log_dir=$run_dir/logs
	cd "$project"
	task_script=(bash compare_models.sh "$@" ${dry_run:+--dry-run})
	for name in ${dry_run:+"${tasks[@]}"}; do
		RUN=$run_dir/$name "${task_script[@]}" || exit $?
	done
	[[ -z $dry_run ]] || exit 0
	stage_command() { task_command "$1"; }
	begin_job
	[[ -n ${LUNGKIT_JOB:-} ]] || set_up
	run_tasks
	end_job 0
fi
find_replicates
PRESET=${PRESET:-$(kept preset)}
PRESET=${PRESET:-demo}
[[ $PRESET == demo || $PRESET == full ]] || bad_option "PRESET is '$PRESET': expected demo or full"
repeats=${1:-$([[ $PRESET == demo ]] && echo 6 || echo 30)}
check_positive N "$repeats"
((repeats > 1)) || bad_option "N is 1: a rank-sum test needs two or more repeats, and ten pairs need 6 to be significant"
check_replicates CNN_OPTIONS UNET_OPTIONS
for name in SEGMENT OUTLIERS SCREEN TUNED EXPLAIN; do
	[[ ${!name:-0} =~ ^[01]$ ]] || bad_option "$name is '${!name}': expected 1, or nothing"
done
[[ -z $TUNE ]] || check_positive TUNE "$TUNE"
best=$run_dir/searches/tune/best.json
[[ ${TUNED:-0} == 0 ]] || ((REPLICATES == 1)) ||
	bad_option "TUNED: settings are chosen on replicate 0's training images, of patients that other replicates test on: they are for a run of one replicate, not of $REPLICATES"
[[ ${TUNED:-0} == 0 || -n $TUNE || -f $best ]] ||
	bad_option "TUNED: there is no $best yet: say by TUNE how many settings are to be tried"
[[ ${EXPLAIN:-0} == 0 || ! $CNN_OPTIONS =~ (^|[[:space:]])--frozen([[:space:]]|$) ]] ||
	bad_option "EXPLAIN: CNN_OPTIONS holds --frozen, and a head on frozen features has no map of its own"
[[ -z $WORKERS ]] || check_positive WORKERS "$WORKERS"
check_positive MAX_RESTARTS "$MAX_RESTARTS"
[[ $SEED =~ ^[0-9]+$ ]] || bad_option "SEED is '$SEED': expected a whole number"
log_dir=$run_dir/logs
verdict=$log_dir/verdict.$job_id.txt	# another job may compare at the same time
verdict_dice=$log_dir/verdict_dice.$job_id.txt
cd "$project"

read -ra cnn_options <<<"$CNN_OPTIONS"
read -ra unet_options <<<"$UNET_OPTIONS"
read -ra outliers_options <<<"$OUTLIERS_OPTIONS"
read -ra screen_options <<<"$SCREEN_OPTIONS"
read -ra tune_options <<<"$TUNE_OPTIONS"
read -ra explain_options <<<"$EXPLAIN_OPTIONS"
read -ra test_options <<<"$TEST_OPTIONS"
plan_options=()	# what of them is planned
for ((k = 0; k < ${#test_options[@]}; k++)); do
	case ${test_options[k]} in
		--metric | --margin | --alpha) plan_options+=("${test_options[@]:k:2}") ;;
		--metric=* | --margin=* | --alpha=*) plan_options+=("${test_options[k]}") ;;
	esac
done
plan=$run_dir/comparison/plan.json
first=$(place "${here[0]}")/datasets	# whose names all others must have
baseline=()	# further rows, where their features are at hand
names=(real)
arms=(real)	# of these, all that are no control and no mixture
masked=()	# of the arms, those with masks such as real's, where SEGMENT=1
looks=()	# what is asked about real's images beside, of the run itself alone
if ((here[0] == 0)); then
	[[ ${OUTLIERS:-0} == 0 ]] || looks+=(outliers)
	[[ ${SCREEN:-0} == 0 ]] || looks+=(screen)
	[[ -z $TUNE ]] || looks+=(tune)
	[[ ${EXPLAIN:-0} == 0 ]] || looks+=(kept explain)
fi

# ---------------------------------------------------------------- what is started

says() { grep -qsE "$1" "$first/real/dataset.json"; }	# says PATTERN: whether real's manifest does

choose_baselines() {	# sets wanted: the classical baselines asked for
	local known=(nuclei) among name
	if [[ $(kept modality) == ct ]] || says '"modality": *"ct"'; then
		known=(size nodule)
	fi
	among="expected ${known[*]}, all, or nothing"
	# what has a size is a nodule: where that is the class, size would be the answer itself
	if [[ $(kept task) == *-presence ]] || says '"labels": *"presence"'; then
		known=() among='of nodule or none there is no baseline'
	fi
	[[ $BASELINE != all ]] || BASELINE=${known[*]}
	read -ra wanted <<<"$BASELINE"
	for name in "${wanted[@]}"; do
		[[ " ${known[*]} " == *" $name "* ]] || bad_option "BASELINE is '$BASELINE': $among"
	done
}

find_baselines() {	# sets baseline: of those wanted, each whose features are, or will be, of this run
	local name
	baseline=()
	for name in "${wanted[@]}"; do
		if [[ $name == nuclei ]]; then	# voronoi_seg.py measures them
			[[ " ${names[*]} " == *' voronoi '* ]] || continue
			[[ -n $dry_run || -f $first/voronoi/image_features.csv ]] || continue
		fi
		baseline+=("$name")
	done
}

find_datasets() {	# sets names: the datasets there are, of DATASETS where it is set
	local manifest name
	names=()
	for manifest in "$first"/*/dataset.json; do
		name=${manifest%/dataset.json} name=${name##*/}
		[[ ! -f $manifest || (-n $DATASETS && " $DATASETS " != *" $name "*) ]] || names+=("$name")
	done
}

# A control or a mixture is trained as an arm is, and is none: plan and families are of arms alone.
find_arms() {	# sets arms, of names
	local name others paths=("${names[@]/#/$first/}")
	arms=()
	others=$'\n'$(grep -lsE '"(control|mix)": *[{]' /dev/null "${paths[@]/%//dataset.json}" || true)$'\n'
	for name in "${names[@]}"; do
		[[ $others == *$'\n'"$first/$name/dataset.json"$'\n'* ]] || arms+=("$name")
	done
}

choose_planned() {	# sets baseline, planned and planned_too: arms and baselines, those still to come among them
	local there=("${names[@]}")
	planned=("${arms[@]}")
	if [[ -n $early ]]; then
		read -ra names <<<"$LUNGKIT_ARMS"
		mapfile -t planned < <(printf '%s\n' "${arms[@]}" "${names[@]}" | sort -u)
		dry_run=yes find_baselines
		planned_too=("${baseline[@]}") names=("${there[@]}")
		find_baselines
	else
		find_baselines
		planned_too=("${baseline[@]}")
	fi
}

find_masked() {	# sets masked, of arms, and unets: how many are trained on each
	local kind name
	masked=() unets=$repeats
	[[ ${SEGMENT:-0} == 1 ]] || return 0
	for kind in nodule tumour; do
		! says "\"$kind\": *\"(binary|labels)\"" || break
		[[ $kind != tumour ]] || bad_option "SEGMENT: $first/real has no masks of nodules or tumour"
	done
	for name in "${arms[@]}"; do
		! grep -qsE "\"$kind\": *\"(binary|labels)\"" "$first/$name/dataset.json" || masked+=("$name")
	done
	((${#masked[@]} > 1)) || unets=2	# two say how far trainings are apart
}

stage_command() {	# sets what run_stages starts
	local stage replicate root seed name features=real shown=() quick=()
	read_name "$1"
	name=${stage#* }
	case $stage in
		sheet*) command=(python -m lungkit.compare.contact_sheet --dataset "$root/datasets/$name"
			--output "$root/sheets/$name.png") ;;
		check*) stage_command "$(named "$name" "$replicate")"; command+=(--dry-run) ;;
		cnn*)	# identical processes share the trainings between them
			command=(python cnn_classify.py --data "${names[@]/#/$root/datasets/}" --real "$root/datasets/real"
				--results "$run_dir/results" --repeats "$repeats") ;;&
		kept)	# the same network as the first of real's, whose weights are not
			command=(python cnn_classify.py --data "$root/datasets/real" --real "$root/datasets/real"
				--results "$run_dir/kept" --repeats 1 --keep-weights) ;;&
		cnn* | kept)
			command+=(--replicate "$replicate" --preset "$PRESET" --seed "$seed" ${MODEL:+--model "$MODEL"})
			[[ ${TUNED:-0} == 0 || ! -f $best ]] || command+=(--settings "$best")
			command+=("${cnn_options[@]}") ;;
		outliers) command=(python outliers.py --data "$root/datasets/real" --output "$run_dir/outliers"
				--seed "$seed" "${outliers_options[@]}") ;;
		explain) command=(python cnn_explain.py --data "$root/datasets/real" --results "$run_dir/kept"
				--output "$run_dir/explain" --seed "$seed" "${explain_options[@]}") ;;
		screen)	# to train all of a larger network takes minutes a fold without a GPU
			[[ $PRESET == full ]] || quick=(--folds 3 --steps 100 --mode features)
			command=(python cnn_search.py screen --data "$root/datasets/real" --output "$run_dir/searches/screen"
				--preset "$PRESET" --seed "$seed" "${quick[@]}" "${screen_options[@]}") ;;
		tune)	# one process: which settings a trial has depends on those that are known by then
			[[ $PRESET == full ]] || quick=(--folds 3 --steps 50)
			command=(python cnn_search.py tune --data "$root/datasets/real" --output "$run_dir/searches/tune"
				--preset "$PRESET" --seed "$seed" ${MODEL:+--model "$MODEL"} --trials "$TUNE"
				"${quick[@]}" "${tune_options[@]}") ;;
		unet*)	# as these; of a demo's slices it is shown parts, a quarter of the work a step
			[[ $PRESET == full ]] || ! says '"image_size": *128\b' || quick=(--patch-size 64)
			command=(python unet_segment.py --data "${masked[@]/#/$root/datasets/}" --real "$root/datasets/real"
				--results "$run_dir/segment/results" --repeats "$unets" --replicate "$replicate"
				--preset "$PRESET" --seed "$seed" "${quick[@]}" "${unet_options[@]}") ;;
		nuclei | size | nodule)
			[[ $stage != nuclei ]] || features=voronoi
			command=(python nuclei_classify.py --baseline "$stage" --features "$root/datasets/$features"
				--real "$root/datasets/real" --results "$run_dir/results" --repeats "$repeats"
				--replicate "$replicate" --seed "$seed") ;;
		plan) command=(python -m lungkit.compare.plan --results "$run_dir/results" --real "$root/datasets/real"
				--output "$plan" --arms "${planned[@]}" ${planned_too[0]:+--baselines "${planned_too[@]}"}
				--repeats "$repeats" --replicates "$REPLICATES"
				${METRIC:+--metric "$METRIC"} ${MARGIN:+--margin "$MARGIN"} "${plan_options[@]}") ;;&
		segment-plan) command=(python -m lungkit.compare.plan --results "$run_dir/segment/results" --real "$root/datasets/real"
				--output "$run_dir/segment/comparison/plan.json" --arms "${masked[@]}"
				--repeats "$repeats" --replicates "$REPLICATES" --metric dice) ;;&
		plan | segment-plan)
			[[ ${FORCE:-0} == 0 ]] || command+=(--force) ;;
		segment-test) stdout=$verdict_dice
			command=(python wilcoxon_test.py "$run_dir/segment/results" --output "$run_dir/segment/comparison"
				--metric dice --datasets "${masked[@]}" --repeats "$repeats" --replicates "$REPLICATES"
				--plan "$run_dir/segment/comparison/plan.json") ;;
		fidelity) command=(python -m lungkit.tools.fidelity --data "${arms[@]/#/$root/datasets/}"
				--real "$root/datasets/real") ;;
		test) stdout=$verdict
			# what a run has no results of yet is no bad option: the dry run sees none of them
			command=(python wilcoxon_test.py "$run_dir/results${dry_run:+/.none}" --output "$run_dir/comparison"
				${METRIC:+--metric "$METRIC"} ${MARGIN:+--margin "$MARGIN"})
			[[ -n $dry_run ]] ||
				command+=(--datasets "${names[@]}" "${baseline[@]}" --repeats "$repeats"
					--replicates "$REPLICATES" --plan "$plan" --sheets "$run_dir/sheets")
			[[ -n $dry_run || ${FIDELITY:-0} == 0 ]] || mapfile -t -O "${#command[@]}" command < <(echo --fidelity
				for ((k = 0; k < REPLICATES; k++)); do echo "$(place "$k")/datasets"; done)
			[[ -n $dry_run || ! -d $run_dir/models ]] || command+=(--models "$run_dir/models")
			[[ -n $dry_run || ! -f $run_dir/explain/explain.json ]] || shown+=("$run_dir/explain")
			[[ -n $dry_run || ! -f $run_dir/outliers/outliers.json ]] || shown+=("$run_dir/outliers")
			((${#shown[@]} == 0)) || command+=(--explained "${shown[@]}")
			command+=("${test_options[@]}") ;;
	esac
	((replicate == 0)) || log=$root/logs/${stage// /-}.log
}

# The stages' dry runs, of what data there is: a typo ends here, with its line.
check_stages() {	# check_stages NAME...
	local name status said
	for name in "$@"; do
		[[ -z $stop_signal ]] || end_job 75
		[[ $name != 'check plan' || ${#planned[@]} -gt 1 ]] || continue
		stage_command "$name"
		status=0
		said=$("${command[@]}" 2>&1 >/dev/null) || status=$?
		if ((status == 2)) || { ((status != 0)) && [[ $name =~ cnn|unet|outliers|screen|tune && -f $first/real/dataset.json ]]; }; then
			fault "$name failed (exit $status): $(tail -n 1 <<<"$said")"
			exit "$status"
		fi
		[[ $name != 'check plan'* || ! -f $first/real/dataset.json ]] || printf '%s\n' "$said" >&2
	done
}

choose_baselines
if [[ -n $dry_run ]]; then
	# shellcheck source=setup_env.sh
	[[ -n ${LUNGKIT_JOB:-} ]] || source ./setup_env.sh
	find_datasets	# one that was renamed or altered is told now, not after the arms' trainings
	((${#names[@]} > 0)) || names=(real)
	checks=("$(named 'check cnn' "${here[0]}")")
	for name in "${wanted[@]}"; do checks+=("$(named "check $name" "${here[0]}")"); done
	if [[ -f $first/real/dataset.json ]]; then
		find_arms
		find_masked
	fi
	((${#masked[@]} == 0)) || checks+=("$(named 'check unet' "${here[0]}")")
	check_stages "${checks[@]}" "${looks[@]/#/check }" 'check test'
	read -ra names <<<"${DATASETS:-real ${LUNGKIT_ARMS:-} ${names[*]}}"	# also those to be made
	find_arms
	choose_planned
	check_stages "$(named 'check plan' "${here[0]}")"
	exit 0
fi

# ---------------------------------------------------------------- the datasets

[[ -d $first ]] || { fault "$first is not there, RUN=$run_dir holds no datasets: make them with run_pipeline.slurm first"; exit 1; }
if [[ -n $DATASETS ]]; then
	read -ra names <<<"$DATASETS"
else
	find_datasets
fi
for r in "${here[@]}"; do
	for name in real "${names[@]}"; do
		[[ -f $(place "$r")/datasets/$name/dataset.json ]] || { fault "$(place "$r")/datasets/$name is not a complete dataset: make it with its stage first (found in $first: ${names[*]:-none})"; exit 1; }
	done
done
find_arms
choose_planned
((${#planned[@]} > 1)) || { fault "$first holds one dataset only (${arms[*]}), apart from controls and mixtures: a comparison needs two or more"; exit 1; }

for name in "${baseline[@]}"; do
	[[ " ${names[*]} " != *" $name "* ]] || bad_option "$first/$name has the name of the baseline, where its results lie: make that dataset under another name, or set BASELINE="
done

begin_job
[[ -n ${LUNGKIT_JOB:-} ]] || set_up
find_gpus
go_by_device
each=''
[[ $device == cuda ]] || each=1	# on a CPU the fastest, and the same bytes for any WORKERS
share_out "$WORKERS" "$(cores)" "$each"
go_by_threads threads_cnn
all=$((repeats * ${#names[@]} * ${#here[@]}))
((slots <= all)) || slots=$all
[[ -n $early ]] || find_masked	# the U-Nets' plan is of all arms
dry_run=yes check_stages 'check test'	# METRIC and TEST_OPTIONS are used after all trainings
[[ ${FIDELITY:-0} == 0 ]] || check_stages 'check fidelity'
[[ -n $early ]] || check_stages "${looks[@]/#/check }"

# ---------------------------------------------------------------- N trainings of each

is_complete() {	# is_complete NAME REPLICATE [ROOT]: whether its N results are there
	local k path most=$repeats
	[[ ${3:-results} == results ]] || most=$unets
	for ((k = most - 1; k >= 0; k--)); do
		printf -v path '%s/%s/%s/replicate_%03d/repeat_%04d.json' "$run_dir" "${3:-results}" "$1" "$2" "$k"
		[[ -f $path ]] || return 1
	done
}

for r in "${here[@]}"; do mkdir -p "$(place "$r")/logs"; done
run_stages 1 "$(named plan "${here[0]}")" || end_job $?
((${#masked[@]} < 2)) || run_stages 1 "$(named segment-plan "${here[0]}")" || end_job $?
stages=()
for r in "${here[@]}"; do
	for name in "${names[@]}"; do
		((r > 0)) || [[ $run_dir/sheets/$name.png -nt $run_dir/datasets/$name/dataset.json ]] || stages+=("sheet $name")
	done
	for name in "${names[@]}"; do
		is_complete "$name" "$r" || { stages+=("$(named 'check cnn' "$r")"); break; }
	done
	for name in "${masked[@]}"; do
		is_complete "$name" "$r" segment/results || { stages+=("$(named 'check unet' "$r")"); break; }
	done
done
run_stages "$slots" "${stages[@]}" || end_job $?

kept device "$device" >/dev/null
keep_threads threads_cnn
say "$repeats trainings on each of ${#names[@]} datasets (${names[*]}) of ${#here[@]} replicate(s), $slots at a time with $threads thread(s) each"
stages=()
for name in "${looks[@]}"; do
	if [[ $name == tune && ${TUNED:-0} == 1 ]]; then
		run_stages 1 tune || end_job $?
	elif [[ -z $early && $name != explain ]]; then	# of what is kept here
		stages+=("$name")
	fi
done
for r in "${here[@]}"; do
	[[ -n $early || ${FIDELITY:-0} == 0 ]] || stages+=("$(named fidelity "$r")")	# beside the trainings
	for name in "${baseline[@]}"; do stages+=("$(named "$name" "$r")"); done
	for ((k = 1; k <= slots; k++)); do stages+=("$(named cnn "$r") $k"); done
done
run_stages "$slots" "${stages[@]}" || end_job $?
[[ -z $early ]] || end_job 0

stages=()
[[ " ${looks[*]} " != *' explain '* ]] || stages+=(explain)
if ((${#masked[@]} > 0)); then
	say "$unets U-Nets on each of ${#masked[@]} datasets with masks (${masked[*]})"
	for r in "${here[@]}"; do
		for ((k = 1; k <= slots; k++)); do stages+=("$(named unet "$r") $k"); done
	done
fi
run_stages "$slots" "${stages[@]}" || end_job $?

missing=()	# of the other tasks of a job array
for ((r = 0; r < REPLICATES && ${#here[@]} < REPLICATES; r++)); do
	for name in "${names[@]}" "${baseline[@]}" "${masked[@]/#/segment/}"; do
		root=results
		[[ $name != segment/* ]] || root=segment/results
		is_complete "${name#segment/}" "$r" "$root" || { missing+=("$r"); break; }
	done
done
if ((${#missing[@]} > 0)); then
	print_timings
	say "replicate ${here[*]} is complete; replicate(s) ${missing[*]} are not: the task that ends last makes the comparison, or 'REPLICATES=$REPLICATES bash compare_models.sh $repeats' of this run"
	end_job 0
fi

status=0
run_stages 1 test || status=$?
if ((status != 0)); then
	rm -f "$verdict" "$log_dir/verdict.txt"	# half of one, and that of other results
	end_job "$status"
fi
if ((${#masked[@]} > 1)); then
	run_stages 1 segment-test || status=$?
	((status == 0)) || { rm -f "$verdict_dice"; end_job "$status"; }
elif ((${#masked[@]} == 1)); then
	say "only ${masked[0]} has masks such as real's: its Dice scores are in $run_dir/segment/results, and there is nothing to compare them with"
fi
print_timings
cat "$verdict"
mv -f "$verdict" "$log_dir/verdict.txt"
if ((${#masked[@]} > 1)); then
	cat "$verdict_dice"
	mv -f "$verdict_dice" "$log_dir/verdict_dice.txt"
fi
end_job 0
