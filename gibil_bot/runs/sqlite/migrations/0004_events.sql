-- A delivery is stored as the event that it means; `payloads` keeps the body of those that could not be read.
-- Deliveries of earlier versions have a payload and no event.

alter table deliveries add column content blob;            -- model.Event as JSON; null: not read
alter table deliveries add column digest blob not null default x'';   -- SHA-256 of the body, where something follows from it

-- Of the event; null where it is not about one, or not read.
alter table deliveries add column repository_id integer;
alter table deliveries add column pull_request integer;

alter table deliveries add column cancels integer not null default 0;   -- every command in it is `cancel`: handled first
create index deliveries_cancelling on deliveries (seq) where handled_at is null and cancels = 1;

-- Cancellations that overtook earlier deliveries: what those queue later is cancelled too.
create table cancellations (
    seq integer primary key,
    delivery_seq integer not null,         -- of the comment that cancels
    repository_id integer not null,
    pull_request integer not null,
    workflow text,                         -- null: all
    reason text not null
);
create index cancellations_of_pull_request on cancellations (repository_id, pull_request);
