-- +goose Up
CREATE TABLE users (
    id           TEXT    NOT NULL PRIMARY KEY,
    plan_stocks  TEXT    NOT NULL CHECK (plan_stocks  IN ('free', 'developer', 'expert', 'commercial')),
    plan_options TEXT    NOT NULL CHECK (plan_options IN ('free', 'developer', 'expert', 'commercial')),
    created_ms   INTEGER NOT NULL,
    updated_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
    number     INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    user_id    TEXT    NOT NULL REFERENCES users (id),
    product    TEXT    NOT NULL CHECK (product IN ('stocks', 'options', 'paper')),
    label      TEXT    NOT NULL,
    digest     BLOB    NOT NULL UNIQUE CHECK (length(digest) = 32),
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT;

CREATE INDEX keys_by_user ON keys (user_id, number);

-- One row: which pepper the digests were made with.
CREATE TABLE pepper (
    one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    fingerprint BLOB    NOT NULL CHECK (length(fingerprint) = 32)
) STRICT;

-- +goose Down
DROP TABLE pepper;
DROP TABLE keys;
DROP TABLE users;
