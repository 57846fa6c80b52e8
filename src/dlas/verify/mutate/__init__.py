"""Mutation testing: would the rows and the paths at hand notice a wrong network or a wrong kernel?"""
