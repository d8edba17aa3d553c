-- Which commits were the head of a pull request, and who pushed them. `at` is GitHub's time, `seen_at` the bot's.

create table heads (
    seq integer primary key,
    repository_id integer not null,
    pull_request integer not null,
    sha text not null,
    action text not null,                  -- opened, synchronize, reopened, seen
    at real not null,
    before_sha text,
    pusher text,                           -- null: unknown
    pusher_is_bot integer not null default 0,
    head_repository_id integer,
    head_owner text,
    seen_at real not null
);
create unique index heads_once on heads (repository_id, pull_request, sha, action, at, coalesce(before_sha, ''), coalesce(pusher, ''));
create index heads_of_fork on heads (repository_id, head_repository_id, at) where action = 'synchronize';
create index heads_seen on heads (seen_at);

-- Pushes to branches of the repository itself, with or without a pull request.
create table branch_pushes (
    seq integer primary key,
    repository_id integer not null,
    sha text not null,
    branch text not null,
    at real not null,
    pusher text not null,
    pusher_is_bot integer not null default 0,
    seen_at real not null
);
create unique index branch_pushes_once on branch_pushes (repository_id, sha, branch, at, pusher);
create index branch_pushes_seen on branch_pushes (seen_at);

-- Commits of untrusted pull requests that a person with write permission has allowed to run.
create table approvals (
    seq integer primary key,
    repository_id integer not null,
    pull_request integer not null,
    sha text not null,
    approved_by text not null,
    at real not null,
    seen_at real not null
);
create unique index approvals_once on approvals (repository_id, pull_request, sha, at, approved_by);

-- A keyed fingerprint of the secrets with which a run began, never the secrets themselves.
create table run_secrets (
    run_id text primary key,
    fingerprint text not null
);
