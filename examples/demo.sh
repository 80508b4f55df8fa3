#!/bin/sh
# A trained masked network becomes a small file, and the file a running network, in another process
# that sees neither the checkpoint nor the code of the model. `make demo` runs this.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

show() {
    printf '\n$'
    for word in "$@"; do
        case $word in *[\ \"]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

show pemn encode convmixer-rp1e-3-k50.pt --arch convmixer.py:convmixer \
    --arch-kwargs '{"dim": 128, "depth": 4, "patch_size": 4}' --example-shape 3,32,32 \
    -o "$out/net.pemn"
show pemn inspect "$out/net.pemn"
show pemn verify "$out/net.pemn" --against convmixer-rp1e-3-k50.pt

cp classify.py cifar10-200.npz "$out"
cd "$out"
show ls -l net.pemn
show python -I classify.py net.pemn cifar10-200.npz
