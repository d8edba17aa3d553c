-- Priorities of notifications, and limits on the commands of one person.

alter table tellings add column priority integer not null default 2;   -- model.Priority
alter table tellings add column failures integer not null default 0;   -- consecutive ones; `attempts` counts every try
update tellings set priority = case
    when kind = 'reaction' then 3
    when kind <> 'check_run' then 2
    when told_revision = 0 or body like '%"status":"completed"%' then 0
    else 1
end where revision > told_revision and revision > refused_revision;
drop index tellings_untold;
create index tellings_untold on tellings (priority, due_at, seq) where revision > told_revision and revision > refused_revision;

-- Token buckets, each stored as the time at which it is full again: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
create table budgets (
    key text primary key,
    full_at real not null,
    refused_at real not null default 0     -- when the owner of an empty bucket was last notified
) without rowid;
create index budgets_full on budgets (full_at);
