-- A delivery is stored as the event that it means; `payloads` keeps the body of those that could not be read.
-- Deliveries of earlier versions have a payload and no event.

alter table deliveries add column content blob;            -- model.Event as JSON; null: not read
alter table deliveries add column digest blob not null default x'';   -- SHA-256 of the body, where something follows from it
