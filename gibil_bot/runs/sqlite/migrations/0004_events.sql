-- A delivery is stored as its decoded event; `payloads` has the bodies of those that couldn't be decoded.
-- Deliveries of earlier versions have a payload and no event.

alter table deliveries add column content blob;            -- model.Event as JSON; null: not decoded
alter table deliveries add column digest blob not null default x'';   -- SHA-256 of the body, if it has consequences

-- Of the event; null if it isn't about one, or wasn't decoded.
alter table deliveries add column repository_id integer;
alter table deliveries add column pull_request integer;

alter table deliveries add column cancels integer not null default 0;   -- every command in it is `cancel`: handled first
create index deliveries_cancelling on deliveries (seq) where handled_at is null and cancels = 1;

-- Cancellations that overtook earlier deliveries: runs that those queue later are cancelled too.
create table cancellations (
    seq integer primary key,
    delivery_seq integer not null,         -- of the comment that cancels
    repository_id integer not null,
    pull_request integer not null,
    workflow text,                         -- null: all
    reason text not null
);
create index cancellations_of_pull_request on cancellations (repository_id, pull_request);
