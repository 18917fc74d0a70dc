#!/bin/sh
# Once, before `docker compose`: the folders that containers mount, and docker/.env with your uid and fresh secrets.
# Called again, it changes nothing.
set -eu
mkdir -p data "${TORCH_HOME:-$HOME/.cache/torch}" "${ABLATION_CACHE:-$HOME/.cache/ablation}"
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "docker/.env is there already" >&2
    exit
fi
if [ "$(id -u)" = 0 ]; then
    echo "you are root, so the containers will be: call this as the user whose folder it is, if there is one" >&2
fi
umask 077 # for the secrets' file
{
    echo "ABLATION_USER=$(id -u):$(id -g)"
    for name in POSTGRES_PASSWORD MLFLOW_DATABASE_PASSWORD OPTUNA_DATABASE_PASSWORD \
        MLFLOW_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
        echo "$name=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
    done
} > .env.new
mv .env.new .env
echo "docker/.env made; MLflow's user in the cluster is admin, its password MLFLOW_ADMIN_PASSWORD there" >&2
