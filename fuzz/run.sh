#!/usr/bin/env bash
# Fuzzes each target for so many seconds (60 without an argument): fuzz/run.sh [SECONDS]
#
#   policy   any bytes as a policy file
#   target   any text as a URL, any bytes as an address
#
# Installs cargo-fuzz from crates.io into fuzz/target, once. What it learns stays in fuzz/corpus, what it breaks
# lies in fuzz/artifacts. `-s none`: address sanitizing needs a nightly compiler, and there is no unsafe code here.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
tools=$PWD/fuzz/target/tools
export PATH=$tools/bin:$PATH
command -v cargo-fuzz >/dev/null || {
  echo "fuzz: installing cargo-fuzz" >&2
  cargo install cargo-fuzz --locked --quiet --root "$tools"
}
for target in policy target; do
  mkdir -p "fuzz/corpus/$target"
  seeds=fuzz/seeds/urls
  [ "$target" = policy ] && seeds=policies
  cargo fuzz run -s none "$target" "fuzz/corpus/$target" "$seeds" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1
done
