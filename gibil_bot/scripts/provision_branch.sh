# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by provision_script.py: gibil_branch
# Puts the commit on its branch, named by its full ref: a short name may be a tag's, and git's own commands reject some branch
# names that a repository may have.

# shellcheck disable=SC2015  # a failure of either command ends the job
git -C /root/project -c core.hooksPath=/dev/null update-ref "refs/heads/$gibil_branch" HEAD \
    && git -C /root/project symbolic-ref HEAD "refs/heads/$gibil_branch" || gibil_give_up 'the branch' $?
