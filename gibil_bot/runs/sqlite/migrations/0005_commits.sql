-- How far the commits of a run are.

alter table runs add column commit_progress blob;          -- model.CommitProgress as JSON; null: nothing was collected
