#!/bin/sh
# From nothing to programs that share a tensor: a daemon, store_producer.c and store_consumer.c; then
# once more with a tensor made through Redis by store_redis.py. Run by `make check` in this folder.
# PAGEDLLM names the program, if it is not in PATH.
set -eu
cd "$(dirname "$0")"
program=${PAGEDLLM:-pagedllm}
folder=$(mktemp -d)
daemon=
end() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    wait
    rm -rf "$folder"
}
trap end EXIT
export PAGEDLLM_SOCKET="$folder/store.sock"

"$program" store serve >"$folder/line" &
daemon=$!
tries=0
until grep -q serving "$folder/line"; do # the daemon's line: it listens
    kill -0 "$daemon"
    tries=$((tries + 1))
    [ $tries -lt 200 ] || exit 1
    sleep 0.05
done
cat "$folder/line"
redis=$(sed -n 's|.*Redis: unix://||p' "$folder/line")

echo "-- two programs in C"
./store_producer rows &
producer=$!
./store_consumer rows
wait "$producer"

echo "-- a tensor made through Redis, filled in C"
python3 store_redis.py "$redis" create rows f32 1000 1024
./store_producer rows
python3 store_redis.py "$redis" get rows
"$program" store get rows "$folder/rows.npy"
test "$(wc -c <"$folder/rows.npy")" -eq $((128 + 4 * 1000 * 1024))
python3 store_redis.py "$redis" delete rows
test -z "$("$program" store ls)"
