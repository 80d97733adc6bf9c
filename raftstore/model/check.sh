#!/usr/bin/env bash
# Runs the models and their mutations and prints one table:
#   check.sh            all of variants.txt, a few minutes on two cores
#   check.sh short      the base model and two mutations, some seconds
#   check.sh all FILE   the variants of another file
# Exits with 1 if any run says something else than expected and 2 if it cannot run.
# JOBS (2) runs at once, each with at most MEMORY (1500) megabytes.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD

# one DIR NUMBER MODEL SWITCHES EXPECTED NAME: a run; writes its line of the table to DIR/NUMBER and fails never
one() {
  local dir=$1/run$2 out=$1/$2 model=$3 switches=$4 expected=$5 name=$6
  local defines=() s said states depth
  for s in $switches; do defines+=("-D$s"); done
  mkdir "$dir"
  cd "$dir"
  said=unfinished states=- depth=-
  if spin -a "${defines[@]}" "$here/$model.pml" >spin.log 2>&1 &&
    gcc "$([ "$expected" = holds ] && echo -O2 || echo -O0)" -w -DSAFETY -DNOREDUCE -DCOLLAPSE -DMEMLIM="$MEMORY" -o pan pan.c >gcc.log 2>&1; then
    nice -n 10 ./pan -m20000 -w22 -E -n >pan.log 2>&1 || true
    states=$(awk '/states, stored/ {print $1; exit}' pan.log)
    depth=$(sed -n 's/.*depth reached \([0-9]*\),.*/\1/p' pan.log)
    if grep -q 'assertion violated' pan.log; then
      said=$(sed -n 's/.*assertion violated \([a-z_]*\).*/\1/p' pan.log | head -n 1)
    elif grep -q 'errors: 0' pan.log && ! grep -qE 'not completed|too small|out of memory|reached -DMEMLIM|aborted' pan.log; then
      said=holds
    fi
  else
    said=not-built
    cat spin.log gcc.log >&2 2>/dev/null || true
  fi
  local verdict=ok
  [ "$said" = "$expected" ] || verdict=DIFFERS
  printf '%s|%s|%s|%s|%s|%s\n' "$name" "${states:--}" "${depth:--}" "$expected" "$said" "$verdict" >"$out"
  cd "$here"
  rm -rf "$dir"
}

if [ "${1:-}" = --one ]; then
  shift
  one "$@"
  exit
fi

mode=${1:-all} list=${2:-variants.txt}
export JOBS=${JOBS:-2} MEMORY=${MEMORY:-1500}
for tool in spin gcc; do
  command -v "$tool" >/dev/null || { echo "check.sh needs $tool (Debian: apt-get install spin gcc libc6-dev)" >&2; exit 2; }
done
[ "$mode" = all ] || [ "$mode" = short ] || { echo "usage: check.sh [all|short] [FILE]" >&2; exit 2; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trim() { sed 's/^ *//; s/ *$//' <<<"$1"; }

n=0
while IFS='|' read -r name model switches expected; do
  name=$(trim "$name") model=$(trim "$model") switches=$(trim "${switches:-}") expected=$(trim "${expected:-}")
  case $name in '' | '#'*) continue ;; esac
  starred=${name#'* '}
  [ "$mode" = all ] || [ "$starred" != "$name" ] || continue
  [ -n "$expected" ] || { echo "$list: a line has fewer than four columns: $name" >&2; exit 2; }
  n=$((n + 1))
  printf '%s\0' --one "$tmp" "$(printf '%03d' "$n")" "$model" "$switches" "$expected" "$starred" >>"$tmp/jobs"
done <"$list"
[ "$n" -gt 0 ] || { echo "$list: no variants" >&2; exit 2; }

xargs -0 -n 7 -P "$JOBS" bash "$here/check.sh" <"$tmp/jobs"

printf '%-38s %10s %6s  %-28s %-28s %s\n' variant states depth expected actual ''
cat "$tmp"/[0-9][0-9][0-9] | while IFS='|' read -r name states depth expected said verdict; do
  printf '%-38s %10s %6s  %-28s %-28s %s\n' "$name" "$states" "$depth" "$expected" "$said" "$verdict"
done
done_=$(cat "$tmp"/[0-9][0-9][0-9] | wc -l)
bad=$(cat "$tmp"/[0-9][0-9][0-9] | grep -c 'DIFFERS$' || true)
echo "$done_ of $n variants run, $bad differ, $SECONDS s"
[ "$bad" -eq 0 ] && [ "$done_" -eq "$n" ]
