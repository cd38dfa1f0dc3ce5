#!/usr/bin/env bash
# What the image's stage `serve` runs: releases of a mounted folder (or s3://) over HTTP, for those who have a token.
#   MEDRAY_RELEASES        what is served, separated by spaces: cancer@best findings@2
#   MEDRAY_STORAGE_PATH    where it is kept (/releases, or s3://BUCKET/PREFIX)
#   MEDRAY_TOKENS_FILE     a file with the SHA-256 of a token a line; or
#   MEDRAY_TOKENS_SHA256   the same lines themselves, from a secret; or
#   MEDRAY_OPEN_TO_ALL=1   everybody who reaches the port may ask
set -euo pipefail

if [ -z "${MEDRAY_RELEASES:-}" ]; then
  echo "medray-serve: MEDRAY_RELEASES names no release, such as cancer@best" >&2
  exit 1
fi
read -ra releases <<<"$MEDRAY_RELEASES"
options=(--host 0.0.0.0 --port "${PORT:-7860}" --storage-path "${MEDRAY_STORAGE_PATH:-/releases}")
if [ -n "${MEDRAY_TOKENS_FILE:-}" ]; then
  options+=(--tokens-file "$MEDRAY_TOKENS_FILE")
elif [ -n "${MEDRAY_TOKENS_SHA256:-}" ]; then
  file=$(mktemp)
  printf '%s\n' "$MEDRAY_TOKENS_SHA256" | tr ', ' '\n' >"$file"
  options+=(--tokens-file "$file")
elif [ "${MEDRAY_OPEN_TO_ALL:-}" = 1 ]; then
  options+=(--open-to-all)
else
  echo "medray-serve: the port is open to others: MEDRAY_TOKENS_FILE or MEDRAY_TOKENS_SHA256 says who may ask, MEDRAY_OPEN_TO_ALL=1 lets everybody" >&2
  exit 1
fi
exec medray serve "${releases[@]}" "${options[@]}"
