-- What the database of an exchange is made with, once, as a superuser:
--     psql --file k8s/exchange/database.sql
-- Give each role a password of its own then (\password holdfast_owner, …), and put the addresses
-- into the Secrets. The tables are made by the services themselves. The name of the service's role
-- is fixed: migrations grant it what it may, which is to read and to add, never to change what was
-- posted.
CREATE ROLE holdfast_owner LOGIN;
CREATE ROLE holdfast_service LOGIN;
CREATE ROLE holdfast_risk LOGIN;
CREATE DATABASE holdfast OWNER holdfast_owner TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
CREATE DATABASE risk OWNER holdfast_risk TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
