#!/bin/sh
# Make the certificates of one exchange with openssl: for a trial, or where no cert-manager runs.
#
#   sh k8s/certificates/make.sh DIR PAIR…       such as: make.sh ./certificates btc-usdt eth-usdt
#
# DIR gets a folder for each identity, with tls.crt, tls.key and ca.crt, and authority.key, which
# signs others and belongs offline. What is there already is kept, so a pair is added, or a folder
# that was removed made anew, by the same command. The common name is the role; the names are
# those a server is called by: its Service, and the pod's own address for probes and
# `kubectl port-forward`.
set -eu
umask 077

directory=${1:?"a directory for the certificates"}
shift
days=${HOLDFAST_CERTIFICATE_DAYS:-365}
mkdir -p "$directory"
cd "$directory"

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
}

if [ ! -e authority.key ]; then
    key authority.key
    openssl req -x509 -new -key authority.key -sha256 -days 3650 -subj "/CN=holdfast authority" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign" -out authority.crt
fi

# identity FOLDER ROLE [SERVICE]
identity() {
    [ ! -e "$1/tls.crt" ] || return 0
    mkdir -p "$1"
    key "$1/tls.key"
    names=IP:127.0.0.1
    if [ -n "${3:-}" ]; then
        names="$names,DNS:$3,DNS:$3.holdfast,DNS:$3.holdfast.svc,DNS:$3.holdfast.svc.cluster.local"
    fi
    {
        echo "basicConstraints = critical, CA:FALSE"
        echo "keyUsage = critical, digitalSignature"
        echo "extendedKeyUsage = serverAuth, clientAuth"
        echo "subjectAltName = $names"
    } > "$1/extensions"
    openssl req -new -key "$1/tls.key" -subj "/CN=$2" -out "$1/request"
    openssl x509 -req -in "$1/request" -CA authority.crt -CAkey authority.key -CAcreateserial \
        -sha256 -days "$days" -extfile "$1/extensions" -out "$1/tls.crt" 2>/dev/null
    cp authority.crt "$1/ca.crt"
    rm "$1/request" "$1/extensions"
    echo "$1: $2"
}

identity ledgerd ledgerd ledgerd
identity riskd riskd riskd
identity edge edge
identity operator operator
for pair in "$@"; do
    identity "pair-$pair" entry "pair-$pair"
done
