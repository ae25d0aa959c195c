#!/usr/bin/env bash
# Runs, on a machine with an NVIDIA GPU, every suite and benchmark that needs one, and writes
# bench/results/cuda_*.json. Needs bash, coreutils, the driver and a portable build: no compiler, no
# network. In the tree (make gpu) or in a folder that scripts/gpu/pack.sh made.
#
# Usage: scripts/gpu/run.sh [--list] [--only PATTERN]... [--smoke] [--seconds N] [--build DIR] [--out DIR] [--model FILE]
#   --list     names of the steps with their time limits, what is known of each from the results here
#              ("never run" if nothing), and does nothing
#   --only     steps whose name matches the shell pattern, as in 'bench.*'; may be repeated
#   --smoke    benchmarks in their smallest form: checks, no figures
#   --seconds  ends in about so many: steps that have no time left are left out
#   --build    where the programs are (build/portable)
#   --out      where each step's log and the results are written (build/gpu)
#   --model    SmolLM2's GGUF, for steps on a real model (MODEL, or models/ if it is there)
#
# A step is a program with a time limit. One that fails does not stop the others; the table at the end
# has each step's verdict, and the exit status is 1 if any failed. 0: all passed. 2: bad usage.
# What cannot run here (compute-sanitizer, the model or python3 is not there) is left out, and said so.
# Called again with --only and the same --out, it adds to what is there, and the table of goals
# (bench/gpu/table.py) is made of all of it.
#
# Programs are told two things by their environment: PLLM_TEST_MODEL is the model, and under
# compute-sanitizer, which is ten to a hundred times slower, PLLM_TEST_SMALL=1 asks for their brief form.
#
# The sanitizers have SANITIZER_SECONDS between them, what is short and tells most first; what then is not
# begun is left out. Steps that no result is known of are named at the end, and in the results (never_run).
set -uo pipefail

usage() { sed -n 's/^# \(Usage: .*\)/\1/p' "$0"; }
stop() { # stop STATUS WORDS
    echo "run.sh: $2" >&2
    exit "$1"
}
SANITIZER_SECONDS=480
build=build/portable out=build/gpu list=false smoke=() only=() model=${MODEL:-} budget=1000000
while [ $# -gt 0 ]; do
    case $1 in
    --list) list=true ;;
    --smoke) smoke=(--smoke) ;;
    --only | --seconds | --build | --out | --model)
        [ $# -gt 1 ] || stop 2 "$1 wants a word after it"
        case $1 in
        --only) only+=("$2") ;;
        --seconds) [[ $2 =~ ^[0-9]{1,6}$ ]] || stop 2 "--seconds wants a number" && budget=$2 ;;
        --build) build=$(realpath -m "$2") ;;
        --out) out=$(realpath -m "$2") ;;
        --model) model=$(realpath -m "$2") ;;
        esac
        shift
        ;;
    --help) usage; exit 0 ;;
    *) usage >&2; stop 2 "$1 is no option" ;;
    esac
    shift
done
cd "$(dirname "$0")/../.." || exit 1 # tests and benches find their data and results from here

# ---- the steps: names, limits in seconds, commands --------------------------------------------------
names=() limits=() commands=() lacks=() abouts=() every=()
step() { # step NAME LIMIT LACKS COMMAND...     LACKS: why it cannot run here, or nothing
    local pattern wanted=$((${#only[@]} == 0))
    every+=("$1")
    for pattern in ${only[@]+"${only[@]}"}; do
        # shellcheck disable=SC2053
        [[ $1 == $pattern ]] && wanted=1
    done
    [ $wanted = 1 ] || return 0
    names+=("$1") limits+=("$2") lacks+=("$3") abouts+=("$about")
    shift 3
    commands+=("$(printf '%q ' "$@")")
}

about="" # how long a step is thought to take
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || true
no_sanitizer=""
[ -n "$sanitizer" ] || no_sanitizer="there is no compute-sanitizer here"
[ -n "$model" ] || model=$PWD/models/SmolLM2-135M-Instruct.Q4_1.gguf
no_model=""
[ -f "$model" ] || no_model="SmolLM2 is not here (--model FILE)"

# A portable build has all of them in one program (cmake/all_cuda.cmake), others each on its own.
shopt -s nullglob
all=$build/tests/all_cuda
if [ -x "$all" ]; then
    programs=$("$all" --list) || stop 1 "$all does not start here: $("$all" --list 2>&1 | head -n 1)"
else
    programs=$(for file in "$build"/tests/cuda_* "$build"/bench/bench_cuda_*; do echo "${file##*/}"; done)
fi
program() { # program LACKS STEP LIMIT NAME ARGUMENTS...: a step that runs NAME, under tool if any
    local lacking=$1 step=$2 limit=$3 name=$4 folder=tests
    shift 4
    [[ $name != bench_* ]] || folder=bench
    if [ -x "$all" ]; then
        step "$step" "$limit" "$lacking" ${tool[@]+"${tool[@]}"} "$all" "$name" "$@"
    else
        step "$step" "$limit" "$lacking" ${tool[@]+"${tool[@]}"} "$build/$folder/$name" "$@"
    fi
}
tool=()
[ ! -x "$build/pagedllm" ] || step doctor 60 "" "$build/pagedllm" doctor
for name in $programs; do
    [[ $name == cuda_* ]] || continue
    lacking=""
    [[ $name != *smollm2* ]] || lacking=$no_model
    program "$lacking" "test.${name#cuda_}" 300 "$name"
done
# memcheck looks at every access, racecheck at shared memory within a block, synccheck at barriers; the
# last two say nothing of programs that launch no kernel of ours. Each line: a step, about how many seconds
# it takes, and which of its tests if not all. Where the seconds come from: what steps took on an H200, in the form
# they had then (racecheck.linear 265, .prefill 28, .engine over 300; memcheck.engine 102, .linear 3, a
# start with all its kernels among them), by launches and threads then and now, which tests/fake counts
# (tests/check/gpu_brief.py prints them); where nothing was measured, 35 ms a launch under racecheck, as
# linear took, and what the test took without a sanitizer, doubled, under the others.
sanitize() { # sanitize CHECK.NAME SECONDS ARGUMENTS...
    local check=${1%%.*} name=cuda_${1#*.} more=()
    about=$2
    # Driver calls that answer with an error are no fault: tests ask for some, and callers see them.
    [ "$check" != memcheck ] || more=(--report-api-errors no)
    # cuBLASLt's kernels pass data under barriers that racecheck does not follow: only ours are held to it.
    [ "$check" != racecheck ] || more=(--kernel-name kns=pllm_)
    # These start themselves anew as other processes.
    [[ $name != cuda_processes && $name != cuda_store ]] || more+=(--target-processes all)
    tool=(env PLLM_TEST_SMALL=1 "${sanitizer:-compute-sanitizer}" --tool "$check" --error-exitcode 99
        ${more[@]+"${more[@]}"} --print-limit 10)
    shift 2
    program "$no_sanitizer" "$check.${name#cuda_}" $((3 * about + 15)) "$name" "$@"
    about="" tool=()
}
known=" "
while read -r name seconds pattern; do
    [[ $name == *.* && " ${programs//$'\n'/ } " == *" cuda_${name#*.} "* ]] || continue
    known+="cuda_${name#*.} "
    sanitize "$name" "$seconds" ${pattern:+"$pattern"}
done <<'END'
memcheck.linear 4
memcheck.summary 3
memcheck.attention 4
memcheck.sample 4
memcheck.prefill 4
memcheck.rows 4
racecheck.summary 4
racecheck.sample 20
racecheck.rows 10
racecheck.prefill 10
racecheck.attention 15
racecheck.linear 30
memcheck.store 6
memcheck.processes 4
memcheck.pool 2
memcheck.vmm 2
memcheck.memory 3
synccheck.linear 3
synccheck.attention 3
synccheck.prefill 3
synccheck.rows 3
synccheck.sample 3
synccheck.summary 3
memcheck.device 15
memcheck.engine 20
racecheck.engine 40 *tiny*
synccheck.engine 20
racecheck.device 15
synccheck.device 15
END
for name in $programs; do # others, as a new test is
    [[ $name == cuda_* && $name != *smollm2* && $name != cuda_abi && $known != *" $name "* ]] || continue
    for check in memcheck racecheck synccheck; do sanitize "$check.${name#cuda_}" 20; done
done
tool=()
for name in $programs; do
    [[ $name == bench_cuda_* ]] || continue
    program "" "bench.${name#bench_cuda_}" 300 "$name" ${smoke[@]+"${smoke[@]}"}
done
[ ! -x "$build/bench/bench_vmm" ] ||
    step bench.vmm 120 "" "$build/bench/bench_vmm" --device cuda ${smoke[@]+"${smoke[@]}"}

# The whole program on published shapes with random weights: bench/gpu/table.py has the commands and what
# their figures are held against. Each writes OUT/NAME.json.
speed() { # speed NAME LIMIT WORDS...: a command whose first word pagedllm is the one built
    local name=$1 limit=$2 lacking=$no_program word words=()
    shift 2
    for word in "$@"; do
        case $word in
        pagedllm) word=$build/pagedllm ;;
        *.gguf) word=$model lacking=$no_model ;;
        */huggingface.py) lacking=$no_torch ;;
        */weights.py) lacking=$no_model ;;
        esac
        words+=("$word")
    done
    # shellcheck disable=SC2016
    step "speed.$name" "$limit" "$lacking" bash -c '"${@:2}" >"$1.part" || exit; cat "$1.part"; mv "$1.part" "$1"' \
        speed "$out/$name.json" "${words[@]}"
}
no_program=""
[ -x "$build/pagedllm" ] || no_program="there is no $build/pagedllm"
python=""
! python3 -c 0 2>/dev/null || python=python3
no_torch="torch and transformers are not here"
! ${python:-false} -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("transformers")))' \
    2>/dev/null || no_torch=""
export MODEL=$model PAGEDLLM_PROGRAM=$build/pagedllm
if [ ${#smoke[@]} -gt 0 ]; then
    speed smoke 120 pagedllm bench --device cuda --json --shape smollm2-135m --random-weights --depth 256 --prefill 256 \
        --decode 16
elif [ -z "$python" ]; then
    step speed 1 "there is no python3 here" false
elif [ -e bench/gpu/table.py ]; then
    while read -r name limit _ words; do
        # shellcheck disable=SC2086
        speed "$name" "$limit" $words
    done < <(python3 bench/gpu/table.py --list)
fi

known_of() { # known_of STEP: the verdict of the last results here that have it
    local file line verdict commit
    for file in "$out/cuda_suite.json" bench/results/cuda_suite.json; do
        line=$(grep -F "\"name\": \"$1\"," "$file" 2>/dev/null) || continue
        verdict=${line#*'"verdict": "'} commit=$(sed -n 's/.*"commit": "\([^"]*\)".*/ at \1/p' <<<"$line")
        [ -n "$commit" ] || commit=$(sed -n '1s/.*"commit": "\([^"]*\)".*/ at \1/p' "$file")
        printf '%s%s' "${verdict%%'"'*}" "$commit"
        return
    done
    printf 'never run'
}
if $list; then
    for i in ${names[@]+"${!names[@]}"}; do
        printf '%-28s %4ds  %s%s%s\n' "${names[i]}" "${limits[i]}" "${abouts[i]:+about ${abouts[i]} s; }" \
            "$(known_of "${names[i]}")" "${lacks[i]:+; left out: ${lacks[i]}}"
    done
    exit 0
fi
[ -n "$programs" ] || stop 1 "$build has no CUDA tests: make portable builds them where there is nvcc"
[ ${#names[@]} -gt 0 ] || stop 2 "no step is named like that; --list has the names"

# ---- the machine ------------------------------------------------------------------------------------
gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader 2>/dev/null) || gpus=""
if [ -z "$gpus" ]; then
    nodes=(/dev/nvidia[0-9]*)
    [ ${#nodes[@]} -gt 0 ] || stop 1 "there is no NVIDIA GPU here (nvidia-smi shows none, and there is no /dev/nvidia0), so nothing was run"
    gpus="unknown (nvidia-smi says nothing)"
fi
commit=$(cat COMMIT 2>/dev/null || git describe --always --dirty 2>/dev/null || echo unknown)
mkdir -p "$out" bench/results || stop 1 "cannot write in $out or bench/results"
touch "$out/started" # results newer than this are of this run
export PLLM_TEST_MODEL=$model
[ -f "$model" ] || unset PLLM_TEST_MODEL

# ---- run --------------------------------------------------------------------------------------------
json_text() { # as a JSON string
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '"%s"' "$(printf '%s' "$text" | tr '\n\t' '; ' | tr -d '\000-\037')"
}
words_of() { # the last line of a log that says something; of the program's JSON, its figures
    local last
    last=$(grep -av '^[[:space:]]*$' "$1" | tail -n 1)
    if [ "$last" = "}" ]; then
        last=$(sed -n 's/.*"\(depth\|prefill\|fill\|decode\)\(_tokens_per_second\)\{0,1\}": \([0-9]*\)\(\.[0-9]\)\{0,1\}.*/\1 \3\4/p
            s/.*"of_bound": \([0-9]\.[0-9]\{0,2\}\).*/of bound \1;/p' "$1" | tr '\n' ' ')
    fi
    printf '%s' "$last" | tr -d '\000-\037' | cut -c 1-160
}
printf 'GPU      %s\ncommit   %s\nlogs     %s\n\n' "$gpus" "$commit" "$out"
verdicts=() seconds=() failed=() left=0 sanitized=0
for i in "${!names[@]}"; do
    name=${names[i]} log=$out/${names[i]}.log start=$SECONDS status=0 limit=${limits[i]}
    [ "$limit" -lt $((budget - SECONDS)) ] || limit=$((budget - SECONDS))
    [ "$limit" -gt 0 ] || lacks[i]="no time was left (--seconds)"
    if [ -n "${abouts[i]}" ]; then
        [ "$limit" -le $((SANITIZER_SECONDS - sanitized)) ] || limit=$((SANITIZER_SECONDS - sanitized))
        [ "$limit" -gt 0 ] || lacks[i]=${lacks[i]:-"the sanitizers have had their $SANITIZER_SECONDS s"}
    fi
    if [ -n "${lacks[i]}" ]; then
        verdict="left out" left=$((left + 1))
        echo "${lacks[i]}" >"$log"
    else
        timeout -k 5 "$limit" bash -c "exec ${commands[i]}" </dev/null >"$log" 2>&1 || status=$?
        case $status in
        0) verdict=ok ;;
        124 | 137) verdict="TOO LONG" ;;
        *) verdict="FAILED $status" ;;
        esac
        # A test that skips all it has, since it found no device, has shown nothing.
        if [ $status = 0 ] && grep -q '^\[  PASSED  \] 0 test' "$log"; then
            verdict="RAN NONE" status=1
        fi
        [ $status = 0 ] || failed+=("$name")
    fi
    verdicts+=("$verdict") seconds+=($((SECONDS - start)))
    [ -z "${abouts[i]}" ] || sanitized=$((sanitized + SECONDS - start))
    printf '%-28s %-10s %4ds\n' "$name" "$verdict" "${seconds[i]}"
done

# ---- results, what failed, and last the tables ------------------------------------------------------
# Steps of an earlier call on the same commit stay, so that a suite may be run in parts.
results=$out/cuda_suite.json
kept=()
if [ -f "$results" ] && grep -qF "\"commit\": $(json_text "$commit")," "$results"; then
    while read -r line; do
        name=${line#*'"name": "'} name=${name%%'"'*}
        [[ " ${names[*]} " == *" $name "* ]] || kept+=("${line%,}")
    done < <(grep '^  {"name"' "$results")
fi
for i in "${!names[@]}"; do
    kept+=("$(printf '{"name": "%s", "verdict": "%s", "seconds": %d, "words": %s}' "${names[i]}" \
        "${verdicts[i]}" "${seconds[i]}" "$(json_text "$(words_of "$out/${names[i]}.log")")")")
done
never=()
for name in ${every[@]+"${every[@]}"}; do
    [[ ${kept[*]} == *"\"name\": \"$name\", \"verdict\": \""* ]] || never+=("$name")
done
for i in "${!names[@]}"; do # left out is not run
    [ "${verdicts[i]}" != "left out" ] || never+=("${names[i]}")
done
{
    printf '{"gpu": %s, "commit": %s, "date": "%s", "kernel": "%s",\n "never_run": [%s],\n "steps": [' \
        "$(json_text "$gpus")" "$(json_text "$commit")" "$(date -u +%Y-%m-%dT%H:%MZ)" "$(uname -r)" \
        "$(printf '%s\n' ${never[@]+"${never[@]}"} | sed '/./!d; s/.*/"&"/' | paste -sd ,)"
    for i in "${!kept[@]}"; do
        [ "$i" = 0 ] || printf ','
        printf '\n  %s' "${kept[i]}"
    done
    printf '\n]}\n'
} >"$out/cuda_suite.part"
mv "$out/cuda_suite.part" "$results"
for file in bench/results/*.json; do
    if [ "$file" -nt "$out/started" ]; then cp "$file" "$out/"; fi
done
for i in "${!names[@]}"; do
    name=${names[i]#speed.}
    if [ "$name" != "${names[i]}" ] && [ "${verdicts[i]}" = ok ]; then cp "$out/$name.json" "bench/results/cuda_$name.json"; fi
done
[ ${#only[@]} -gt 0 ] || cp "$results" bench/results/ # a part of it is no result to keep
for name in ${failed[@]+"${failed[@]}"}; do
    printf '\n== %s failed; the end of %s/%s.log:\n' "$name" "$out" "$name"
    tail -n 40 "$out/$name.log"
done
if [ -n "$python" ] && [ -e bench/gpu/table.py ] && [[ " ${names[*]}" == *" speed."* ]]; then
    echo
    python3 bench/gpu/table.py --in "$out" --out "$out/cuda.md" || true # a goal missed is no step failed
    [ ${#only[@]} -gt 0 ] || cp "$out/cuda.md" bench/results/
fi
printf '\n%-28s %-10s %5s  %s\n' step verdict time "its last words"
for i in "${!names[@]}"; do
    printf '%-28s %-10s %4ds  %s\n' "${names[i]}" "${verdicts[i]}" "${seconds[i]}" "$(words_of "$out/${names[i]}.log")"
done
[ ${#never[@]} = 0 ] || printf 'never run on this commit: %s\n' "${never[*]}"
printf '%d steps: %d passed, %d failed, %d left out\n' ${#names[@]} \
    $((${#names[@]} - ${#failed[@]} - left)) ${#failed[@]} $left
[ ${#failed[@]} = 0 ]
