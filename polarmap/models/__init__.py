"""The machine learning models behind `polarmap.glm`, `polarmap.convex` and `polarmap.convexnn`.

Every product of a model with its training data X is a coded map (`polarmap.linalg.CodedOperator`). Estimators
(`estimators`) choose a loss and a penalty and scale the features. Solvers (`solvers`) minimize the sum of
both, and need nothing of X but products X v and X' u and, for some, Gram matrices X' diag(w) X.
"""
