"""Git LFS: its pointers and its servers. https://github.com/git-lfs/git-lfs/tree/main/docs"""
