#!/usr/bin/env bash
# Make the Python environment everything runs in, unless it is there and whole.
#
#   bash setup_env.sh           make it (on a cluster: once, on a login node with network)
#   bash setup_env.sh --check   only say whether it can be used as it is, by the exit status
#   source ./setup_env.sh       make it, then put it first on PATH (what the scripts do)
#
# The environment is keyed by the requirements, the Python version and TORCH_INDEX_URL; one that
# is half made, broken or of other requirements is made again, never used. Takes about 3 minutes
# and 5.5 GB the first time, a tenth of a second afterwards. Several may start at once: one makes
# it, the others wait. Settings, all optional:
#
#   VENV                where it lies (.venv beside this script)
#   PYTHON              interpreter to build it with (first of python3.12 python3.11 python3.10
#                       python3 that runs, is 3.10 to 3.12 and has the venv module)
#   MODULES             environment modules to load first, e.g. "python/3.11 cuda/12.8"
#   TORCH_INDEX_URL     package index to take torch and torchvision from instead of PyPI, e.g.
#                       https://download.pytorch.org/whl/cu128; remembered by the environment
#   EXTRA_REQUIREMENTS  a further requirements file to add (tests/run: tests/requirements.txt)

[ -n "${BASH_VERSION:-}" ] || { echo "setup_env: error: this is no script of sh: run it by 'bash setup_env.sh'" >&2; exit 2; }
set +o posix
unset CDPATH BASH_ENV ENV	# a site's: they change what `cd` prints and what a `bash` begins with

lungkit_load_modules() {
	[[ -n ${MODULES:-} ]] || return 0
	local init nounset='' name
	[[ $- != *u* ]] || nounset=yes
	set +u	# the module system's own scripts read variables that are not set
	for init in /etc/profile.d/{modules,lmod,z00_lmod}.sh; do
		# shellcheck disable=SC1090
		[[ $(type -t module) == function || ! -r $init ]] || source "$init"
	done
	for name in $MODULES; do
		if ! module load "$name"; then
			echo "setup_env: error: MODULES: 'module load $name' failed: see 'module avail'" >&2
			return 1
		fi
	done
	[[ -z $nounset ]] || set -u
}

lungkit_load_modules || { [[ ${BASH_SOURCE[0]} == "$0" ]] && exit 1 || return 1; }

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then
	# sourced: work in a shell of its own, and change only this one's environment
	VENV=${VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/.venv}
	[[ $VENV == /* ]] || VENV=$PWD/$VENV
	export VENV
	MODULES='' bash "${BASH_SOURCE[0]}" || return 1
	export VIRTUAL_ENV=$VENV PATH="$VENV/bin:$PATH" PYTHONNOUSERSITE=1
	unset PYTHONPATH PYTHONHOME	# a loaded module's packages would come before ours
	# a person's or a site's, by which a stage would not find us, drop its checks or wait at its end
	unset PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONINSPECT PYTHONSTARTUP PYTHONWARNINGS
	return 0
fi

set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${VENV:-$project/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
requirements=$project/requirements.txt
extra=${EXTRA_REQUIREMENTS:-}
[[ -z $extra || $extra == /* ]] || extra=$project/$extra
stamp=$VENV/.lungkit-stamp			# written last: its key says what the environment is
extra_stamp=$VENV/.lungkit-extra-stamp		# the same for EXTRA_REQUIREMENTS
contents=$VENV/.lungkit-contents		# what was installed, so that a hole is noticed
begun=$VENV/.lungkit-begun			# ours to delete
index_file=$VENV/.lungkit-torch-index
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1

say() { printf 'setup_env: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Print the version of interpreter $1, e.g. 3.11; fail if it does not run (a pyenv shim may not).
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_supported() { [[ $1 =~ ^3\.1[012]$ ]]; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

find_python() {	# sets `python`
	local name found version seen=() bare=''
	if [[ -n ${PYTHON:-} ]]; then
		version=$(version_of "$PYTHON") || die "PYTHON=$PYTHON does not run: set it to a Python 3.10 to 3.12"
		is_supported "$version" || die "PYTHON=$PYTHON is Python $version: 3.10 to 3.12 are supported"
		has_venv "$PYTHON" || die "PYTHON=$PYTHON has no venv module: install it (Debian, Ubuntu: apt-get install python$version-venv)"
		python=$PYTHON
		return
	fi
	for name in python3.12 python3.11 python3.10 python3; do
		while IFS= read -r found; do
			[[ $found != "$VENV"/* ]] || continue	# about to be replaced
			version=$(version_of "$found") || continue
			seen+=("$version")
			is_supported "$version" || continue
			if has_venv "$found"; then
				python=$found
				return
			fi
			bare=${bare:-$version}
		done < <(type -aP "$name" || true)
	done
	[[ -z $bare ]] || die "Python $bare has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv, or python$bare-venv), or set PYTHON to another Python 3.10 to 3.12"
	found=none
	((${#seen[@]} == 0)) || found=$(printf '%s\n' "${seen[@]}" | sort -u | paste -sd' ')
	die "no Python 3.10 to 3.12 here (found: $found): install one (Debian, Ubuntu: apt-get install python3 python3-venv), load one (MODULES=python/3.11), or set PYTHON to one"
}

hash_of() { sha256sum | cut -d' ' -f1; }
key_for() { { cat "$requirements"; printf 'python %s\ntorch from %s\n' "$1" "$torch_index"; } | hash_of; }
extra_key_for() { { printf '%s\n' "$1"; cat "$extra"; } | hash_of; }

# Why the environment cannot be used as it is, in `why`; success if it can.
is_ready() {
	local version wanted entry key
	why='not there'
	[[ -d $VENV ]] || return 1
	why='half made'
	[[ -s $stamp && -s $contents ]] || return 1
	why='broken'
	version=$(version_of "$VENV/bin/python") || return 1
	while IFS= read -r entry; do
		[[ -e $VENV/$entry ]] || return 1
	done <"$contents"
	why='of other requirements'
	wanted=$version
	[[ -z ${PYTHON:-} ]] || wanted=$(version_of "$PYTHON") || return 1
	[[ $wanted == "$version" ]] || return 1
	key=$(key_for "$version")
	[[ $(<"$stamp") == "$key" ]] || return 1
	why='without the extra requirements'
	[[ -z $extra ]] || { [[ -s $extra_stamp && $(<"$extra_stamp") == "$(extra_key_for "$key")" ]]; }
}

pip_install() {	# pip_install ARGUMENT...: quiet; on failure, one line that says what to do
	local log=$VENV/pip.log reason hint
	if PIP_USER=0 "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
		"$@" >>"$log" 2>&1 </dev/null; then
		return 0
	fi
	reason=$(grep -E '^ *ERROR' "$log" | tail -n 1 || true)
	hint="see $log"
	if grep -qE 'NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|Connection refused|ProxyError|unreachable' "$log"; then
		hint="no package index can be reached from here; run 'bash setup_env.sh' on a machine that has network and shares this directory (a login node), or set PIP_INDEX_URL to a mirror; log: $log"
	elif grep -q 'No space left' "$log"; then
		hint="free about 6 GB, or set VENV to a directory on a larger disk"
	fi
	say "error: pip could not install the requirements (${reason:-no reason given}): $hint"
	return 1
}

write_contents() { (cd "$VENV" && printf '%s\n' bin/python lib/python3.*/site-packages/* >"$contents"); }

# Take away what is at VENV: ours is deleted, a foreign environment only moved aside.
clear_place() {
	local aside
	[[ -e $VENV || -L $VENV ]] || return 0
	if [[ -d $VENV && (-e $begun || -z $(ls -A "$VENV")) ]]; then
		rm -rf "$VENV"
	elif [[ $VENV == "$project/.venv" || -e $VENV/pyvenv.cfg ]]; then
		aside=$VENV.old-$(date +%Y%m%d-%H%M%S)
		mv "$VENV" "$aside"
		say "what was at $VENV was not made here; it is now $aside"
	else
		die "VENV=$VENV exists and is no Python environment: choose another VENV"
	fi
}

build() {
	local version torch_lines=()
	find_python
	version=$(version_of "$python")
	clear_place
	mkdir -p "$VENV" || die "cannot make $VENV: set VENV to a place that can be written"
	: >"$begun"
	say "installing into $VENV with Python $version (about 3 minutes, 5.5 GB)"
	"$python" -m venv "$VENV" >"$VENV/pip.log" 2>&1 ||
		die "'$python -m venv' failed ($(tail -n 1 "$VENV/pip.log")): install the venv module (Debian, Ubuntu: apt-get install python$version-venv)"
	printf '%s\n' "$torch_index" >"$index_file"
	if [[ -n $torch_index ]]; then
		mapfile -t torch_lines < <(grep -E '^(torch|torchvision)[=<>~! ;]' "$requirements" || true)
		((${#torch_lines[@]} == 0)) || pip_install --index-url "$torch_index" "${torch_lines[@]}" || exit 1
	fi
	pip_install -r "$requirements" || exit 1
	write_contents
	key_for "$version" >"$stamp"
}

add_extra() {
	local key
	key=$(<"$stamp")
	say "adding $(basename "$(dirname "$extra")")/$(basename "$extra") to $VENV"
	mv "$stamp" "$stamp.adding"	# killed from here on, the environment counts as half made
	if ! pip_install -r "$extra" -c "$requirements"; then
		mv "$stamp.adding" "$stamp"	# pip takes back what it could not finish
		exit 1
	fi
	write_contents
	extra_key_for "$key" >"$extra_stamp"
	mv "$stamp.adding" "$stamp"
}

# For file systems without flock: touched while it is held, and free after ten silent minutes.
lock_by_directory() {
	local place=$VENV.lock.held told='' reason
	until reason=$(LC_ALL=C mkdir "$place" 2>&1); do
		if [[ ! -d $place && ($reason != *'File exists' || -e $place || -L $place) ]]; then
			die "cannot make $place (${reason##*: }): set VENV to a place that can be written"
		elif [[ -n $(find "$place" -maxdepth 0 -mmin +10 2>/dev/null) ]] && rmdir "$place" 2>/dev/null; then
			continue
		fi
		[[ -n $told ]] || say "another set-up is at work on $VENV; waiting for it (or remove $place)"
		told=yes
		sleep 1
	done
	(while kill -0 $$ && touch -c "$place"; do sleep 60; done) >/dev/null 2>&1 9>&- &
	# shellcheck disable=SC2064
	trap "kill $! 2>/dev/null || true; rmdir '$place'" EXIT
}

[[ -r $requirements ]] || die "$requirements is missing: this script belongs in the project directory"
[[ -z $extra || -r $extra ]] || die "EXTRA_REQUIREMENTS=$extra cannot be read"
torch_index=${TORCH_INDEX_URL-$(cat "$index_file" 2>/dev/null || true)}
case ${1:-} in
	'' | --check) ;;
	*) say "error: unknown argument '$1': expected none, or --check"; exit 2 ;;
esac
if is_ready; then
	exit 0
elif [[ ${1:-} == --check ]]; then
	say "$VENV is $why"
	exit 1
fi

mkdir -p "$(dirname "$VENV")" || die "cannot make $(dirname "$VENV"): set VENV to a place that can be written"
{ exec 9>>"$VENV.lock"; } 2>/dev/null || die "cannot write $VENV.lock: set VENV to a place that can be written"
held=0
flock -n 9 || held=$?
if ((held == 1)); then
	say "another set-up is at work on $VENV; waiting for it"
	flock 9
elif ((held != 0)); then
	lock_by_directory
fi
torch_index=${TORCH_INDEX_URL-$(cat "$index_file" 2>/dev/null || true)}
start=$SECONDS
if ! is_ready; then
	if [[ $why != 'without the extra requirements' ]]; then
		[[ $why == 'not there' ]] || say "$VENV is $why: making it again"
		build 9>&-
	fi
	[[ -z $extra ]] || add_extra 9>&-
	say "done in $((SECONDS - start)) s"
fi
