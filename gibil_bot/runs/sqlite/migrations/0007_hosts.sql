-- The hosts whose bots share the database, and what only one of them has.

create table hosts (
    id text primary key,                   -- of its data directory
    name text not null,                    -- for people
    url text not null default '',          -- where the other hosts' bots reach its bot; '': they can't
    seen_at real not null
);
create table processes (
    owner text primary key,                -- as in leases
    host text not null,
    started_at real not null,
    seen_at real not null
);

alter table runs add column machine_host text;                   -- the only host that reaches the machine; null: any
alter table runs add column hosts text not null default '';      -- whose bots worked on it: ids, separated by spaces
alter table runs add column copies integer not null default 0;   -- of its machine, for attempts of agents
create index runs_of_host on runs (machine_host) where finished_at is null and machine_host is not null;

create index runs_of_delivery on runs (delivery_guid);
create index deliveries_claimed on deliveries (repository_id)
    where handled_at is null and cancels = 0 and repository_id is not null and lease_until > 0;
alter table deliveries add column rejection text;                -- why a request of the API was rejected

-- What all bots have to agree on, by name.
create table agreements (
    name text primary key,
    value text not null
);

-- Notifications under the name that the code has for them.
alter table tellings rename to notifications;
alter table notifications rename column told_revision to published_revision;
alter table notifications rename column refused_revision to rejected_revision;   -- GitHub will never accept this revision
alter table notifications rename column told_at to published_at;
drop index tellings_untold;
drop index tellings_refused;
drop index tellings_told;
create index notifications_pending on notifications (priority, due_at, seq)
    where revision > published_revision and revision > rejected_revision;
create index notifications_rejected on notifications (seq) where revision > published_revision and revision <= rejected_revision;
create index notifications_published on notifications (published_at) where published_at is not null;
