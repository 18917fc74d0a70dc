-- Run once by the postgres image, on an empty volume (psql 15 or later): a role and its databases for MLflow, and for
-- Optuna. Neither can reach the other's.
\getenv mlflow_password MLFLOW_DATABASE_PASSWORD
\getenv optuna_password OPTUNA_DATABASE_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE optuna LOGIN PASSWORD :'optuna_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE optuna OWNER optuna;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, optuna FROM PUBLIC;
