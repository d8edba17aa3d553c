-- Times are seconds since the epoch (REAL). A lease that ends at or before now has expired.
-- Indexes over unfinished work are partial, so they stay small however long the history is.

create table deliveries (
    seq integer primary key,               -- the order of arrival
    guid text not null unique,
    event text not null,
    received_at real not null,
    attempts integer not null default 0,
    owner text not null default '',
    lease_until real not null default 0,
    due_at real not null default 0,        -- postponed until then
    handled_at real,
    error text
);
create index deliveries_unhandled on deliveries (seq) where handled_at is null;
create index deliveries_handled on deliveries (handled_at) where handled_at is not null;
create index deliveries_failed on deliveries (seq) where handled_at is not null and error is not null;

-- Separate from its delivery, which is updated several times: an update rewrites the whole row.
create table payloads (
    seq integer primary key references deliveries (seq),
    payload blob not null
);

create table runs (
    seq integer primary key,               -- the order of queueing
    id text not null unique,
    delivery_guid text not null,
    repository_id integer not null,
    pull_request integer not null,
    sha text not null,
    concurrency_group text not null,
    state text not null,
    queued_at real not null,
    started_at real,
    finished_at real,
    conclusion text,
    cancel_reason text,
    machine text,
    machine_attempt integer not null default 0,
    note text,
    owner text not null default '',
    fence integer not null default 0,
    lease_until real not null default 0,
    source blob not null,                  -- model.Source as JSON
    plan blob not null                     -- model.Plan as JSON
);
create index runs_unfinished on runs (state, repository_id, seq) where finished_at is null;
create index runs_unfinished_in_order on runs (seq) where finished_at is null;
create index runs_to_cancel on runs (state, seq) where finished_at is null and cancel_reason is not null;
create index runs_of_group on runs (repository_id, concurrency_group, state, pull_request, seq) where finished_at is null;
create index runs_finished on runs (finished_at) where finished_at is not null;
create index runs_of_repository on runs (repository_id, seq);
create index runs_of_pull_request on runs (repository_id, pull_request, seq);
create index runs_of_commit on runs (repository_id, sha, seq);

-- The last turn of each repository, numbered across all repositories.
create table turns (
    repository_id integer primary key,
    turn integer not null
);
create index turns_in_order on turns (turn);

create table task_results (
    run_id text not null,
    machine_attempt integer not null,
    task_index integer not null,
    result blob not null,                  -- model.TaskResult as JSON
    primary key (run_id, machine_attempt, task_index)
);

create table tellings (
    seq integer primary key,
    key text not null unique,
    kind text not null,
    installation_id integer not null,
    repository text not null,
    body blob not null,                    -- JSON with sorted keys, so that equal bodies are equal bytes
    revision integer not null default 1,
    told_revision integer not null default 0,
    refused_revision integer not null default 0,   -- GitHub will never accept this revision; a newer one is tried
    remote_id integer,
    attempts integer not null default 0,
    error text,
    due_at real not null,
    told_at real,
    owner text not null default '',
    lease_until real not null default 0
);
create index tellings_untold on tellings (due_at, seq) where revision > told_revision and revision > refused_revision;
create index tellings_refused on tellings (seq) where revision > told_revision and revision <= refused_revision;
create index tellings_told on tellings (told_at) where told_at is not null;
