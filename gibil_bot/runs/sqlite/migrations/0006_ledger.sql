-- What agents spend. Amounts are billionths of a US dollar, so that sums are exact.

create table model_calls (
    seq integer primary key,
    id text not null unique,               -- of the reservation
    state text not null,                   -- reserved, estimated (booked without the call's end), booked, or the proxy's `refused`
    run_id text not null,
    task integer not null,
    attempt integer not null,
    person text not null,                  -- login in lower case
    repository_id integer not null,
    repository text not null,              -- owner/name
    day text not null,                     -- YYYY-MM-DD in UTC
    usd integer not null,                  -- of a reservation: at its worst, like its tokens
    input integer not null default 0,
    cache_read integer not null default 0,
    cache_write_5m integer not null default 0,
    cache_write_1h integer not null default 0,
    output integer not null default 0,
    call blob,                             -- agent_task.ModelCall as JSON; null: reserved
    at real not null
);
create index model_calls_of_run on model_calls (run_id, task, seq);
create index model_calls_reserved on model_calls (at) where state = 'reserved';
create index model_calls_ended on model_calls (at) where state <> 'reserved';

-- Sums of calls. `reserved_…` are those of calls in progress.
create table model_sums (
    scope text not null,                   -- attempt, task, run, person, repository
    key text not null,                     -- run/task/attempt, run/task, run, login in lower case, id of the repository
    day text not null,                     -- '' for attempt, task and run
    name text not null,                    -- login or owner/name, as last seen
    usd integer not null default 0,
    input integer not null default 0,
    cache_read integer not null default 0,
    cache_write_5m integer not null default 0,
    cache_write_1h integer not null default 0,
    output integer not null default 0,
    estimated integer not null default 0,  -- how many of the calls have estimated counts
    calls integer not null default 0,
    refused integer not null default 0,
    milliseconds integer not null default 0,
    reserved_usd integer not null default 0,
    reserved_tokens integer not null default 0,
    reserved_calls integer not null default 0,
    at real not null,
    primary key (scope, key, day)
);
create index model_sums_used on model_sums (at);
create index model_sums_of_day on model_sums (day, scope);
